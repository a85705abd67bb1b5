package detect

import (
	"context"

	"hearth/internal/env"
)

// Responder carries out a detection's Response (only env.ResponseFreeze in
// this version) on its Slot.
type Responder func(ctx context.Context, d env.Detection) error

package nodeapi

import (
	"context"
	"fmt"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// Resize implements NodeService. A repeated key gets the first answer, so that a
// call which comes late does not undo a newer one.
func (s *Service) Resize(ctx context.Context, req *hearthv1.NodeResizeRequest) (*hearthv1.NodeResizeResponse, error) {
	limits, err := limitsOf(req.GetResources())
	if err != nil {
		return nil, err
	}
	return once(ctx, s.memo, req.GetIdempotencyKey(), req, func() (*hearthv1.NodeResizeResponse, error) {
		e, err := s.node.Resize(ctx, env.ID(req.GetEnvironment()), limits)
		if err != nil {
			return nil, err
		}
		return &hearthv1.NodeResizeResponse{Environment: s.environment(e)}, nil
	})
}

// limitsOf reads foreign numbers; what they mean is checked by whoever uses them.
func limitsOf(r *hearthv1.Resources) (env.Limits, error) {
	const most = 1 << 60 // all bounds are far below
	if r.GetCpuMillis() > most || r.GetMemoryBytes() > most || r.GetCpuBurstMillis() > most {
		return env.Limits{}, fmt.Errorf("%w: resources %v", env.ErrInvalid, r)
	}
	l := env.Limits{CPUMillis: int64(r.GetCpuMillis()), MemoryBytes: int64(r.GetMemoryBytes()), CPUBurstMillis: int64(r.GetCpuBurstMillis())}
	if r != nil && r.CpuBurstMillis != nil && l.CPUBurstMillis == 0 {
		l.CPUBurstMillis = env.NoBurst
	}
	return l, nil
}

// limitsProto is the inverse of limitsOf; nil for none.
func limitsProto(l env.Limits) *hearthv1.Resources {
	if l == (env.Limits{}) {
		return nil
	}
	r := &hearthv1.Resources{CpuMillis: uint64(l.CPUMillis), MemoryBytes: uint64(l.MemoryBytes)}
	if l.CPUBurstMillis != 0 {
		burst := uint64(max(l.CPUBurstMillis, 0))
		r.CpuBurstMillis = &burst
	}
	return r
}

// resourcesProto says what is in force.
func resourcesProto(r env.Resources) *hearthv1.Resources {
	return limitsProto(env.Limits{CPUMillis: r.CPUMillis, MemoryBytes: r.MemoryBytes, CPUBurstMillis: r.CPUBurstMillis})
}

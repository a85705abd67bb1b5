package ctrd

import (
	"testing"

	"hearth/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

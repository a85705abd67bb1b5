// Package warm reaches sideways, and loads programs.
package warm

import (
	_ "github.com/cilium/ebpf"

	_ "hearth/internal/kerneltest"
	_ "hearth/internal/netpol"
)

// Package netpol follows the rules.
package netpol

import _ "github.com/cilium/ebpf"

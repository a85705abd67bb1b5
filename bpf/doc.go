// Package bpf holds Hearth's kernel programs and what bpf2go generates from
// them. The C is the single source of layouts; there is no logic here.
package bpf

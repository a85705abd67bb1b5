package netpol

import (
	"bufio"
	"fmt"
	"os"
	"testing"

	"hearth/bpf"
)

// The size of each program is tracked, so that a change of the C that makes it
// dearer shows in its review.
func TestInstructionCountsOfIslandProgramsAreTracked(t *testing.T) {
	f, err := os.Open("../../bpf/instructions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tracked := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var name string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &name, &n); err == nil {
			tracked[name] = n
		}
	}
	spec, err := bpf.LoadIsland()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		n := 0
		for _, ins := range p.Instructions {
			n += int(ins.Size() / 8) // a 64-bit load is two
		}
		if tracked[name] != n {
			t.Errorf("bpf/instructions.txt says %s %d: write %s %d", name, tracked[name], name, n)
		}
	}
}

package netpol

import (
	"bufio"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hearth/bpf"
	"hearth/internal/env"
)

func TestReasonsHaveTheSameNumbersInCAndInTheVocabulary(t *testing.T) {
	f, err := os.Open("../../bpf/include/verdict.h")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	form := regexp.MustCompile(`^\tVERDICT_([A-Z]+) = (\d+),`)
	got := map[int]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m := form.FindStringSubmatch(lines.Text()); m != nil {
			n, _ := strconv.Atoi(m[2])
			got[n] = strings.ToLower(m[1])
		}
	}
	for i, r := range env.Reasons {
		if got[i+1] != string(r) {
			t.Errorf("verdict %d is %q in C, %q in env.Reasons", i+1, got[i+1], r)
		}
	}
	if n := len(env.Reasons) + 1; got[0] != "allowed" || got[n] != "count" || int(bpf.IslandVerdictVERDICT_COUNT) != n || len(got) != n+1 {
		t.Errorf("C has %v, want allowed, %d reasons and the count", got, len(env.Reasons))
	}
	if len(bpf.IslandPolicyRule{}.Ports) != maxRanges {
		t.Errorf("the kernel keeps %d ranges, compile allows %d", len(bpf.IslandPolicyRule{}.Ports), maxRanges)
	}
}

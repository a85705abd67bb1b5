package cgroups

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What hangs on another is written when the kernel takes it.
func TestLimitsFallFromTheInnermostAndRiseFromTheOutermost(t *testing.T) {
	file := func(name, was, value string) *limitFile {
		return &limitFile{write: write{limit: limit{file: name}, value: value}, was: was}
	}
	cases := map[string]struct {
		todo []*limitFile
		want string
	}{
		"rising":  {[]*limitFile{file("outer quota", "100", "200"), file("outer burst", "0", "200"), file("inner quota", "100", "200")}, "outer quota, outer burst, inner quota"},
		"falling": {[]*limitFile{file("outer quota", "200", "100"), file("outer burst", "200", "0"), file("inner quota", "200", "100")}, "inner quota, outer burst, outer quota"},
		"both":    {[]*limitFile{file("quota", "200", "100"), file("memory", "1", "2"), file("inner quota", "200", "100")}, "inner quota, quota, memory"},
		"from none": {[]*limitFile{file("quota", "-1", "100"), file("max", "max 100000", "50000 100000"), file("inner quota", "-1", "100")},
			"inner quota, max, quota"},
		"to none": {[]*limitFile{file("memory", "5", "max"), file("inner memory", "5", "max")}, "memory, inner memory"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range inOrder(tc.todo, func(f *limitFile) string { return f.was }, func(f *limitFile) string { return f.value }) {
				got = append(got, f.file)
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, ", ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

package preflight

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// version is major.minor.patch.
type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) atLeast(major, minor int) bool {
	return v[0] > major || v[0] == major && v[1] >= minor
}

var versionPattern = regexp.MustCompile(`(?:^|[\sv])(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?`)

// findVersion reads the first version number in s, such as a program's
// --version or a kernel's release.
func findVersion(s string) (version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("no version in %.80q", s)
	}
	var v version
	for i, part := range m[1:] {
		v[i], _ = strconv.Atoi(part) // "" is 0
	}
	return v, nil
}

// idsOverlap finds the first line of a subuid or subgid file (subuid(5):
// name:first:count) that shares an id with [base, base+count).
func idsOverlap(text string, base, count uint32) (string, bool) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		parts := strings.Split(line, ":")
		if len(parts) != 3 || strings.HasPrefix(line, "#") {
			continue
		}
		first, err1 := strconv.ParseUint(parts[1], 10, 32)
		n, err2 := strconv.ParseUint(parts[2], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		if first < uint64(base)+uint64(count) && uint64(base) < first+n {
			return line, true
		}
	}
	return "", false
}

// checkIDs refuses a pool that the kernel or tools cannot use. Ids from 2^31
// are negative to programs that hold them in an int.
func checkIDs(base, count uint32) error {
	const slot = 65536
	switch {
	case base < slot:
		return fmt.Errorf("the pool starts at %d, among the node's own users", base)
	case count < slot || count%slot != 0:
		return fmt.Errorf("the pool has %d ids, not a multiple of %d", count, slot)
	case uint64(base)+uint64(count) > math.MaxInt32+1:
		return fmt.Errorf("the pool ends above 2^31")
	}
	return nil
}

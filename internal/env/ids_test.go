package env

import (
	"errors"
	"testing"
	"time"
)

func TestULIDMatchesTheSpecificationsExample(t *testing.T) {
	// github.com/ulid/spec: the time part of 01ARZ3NDEKTSV4RRFFQ69G5FAV.
	got := newULID(time.UnixMilli(1469922850259))
	if want := "01arz3ndek"; got[:10] != want {
		t.Errorf("time part = %q, want %q", got[:10], want)
	}
	if len(got) != ulidLen {
		t.Errorf("length = %d, want %d", len(got), ulidLen)
	}
}

func TestIDsSortByTimeAndNeverRepeat(t *testing.T) {
	now := time.Now()
	if a, b := newULID(now), newULID(now.Add(time.Millisecond)); a >= b {
		t.Errorf("%q is not before %q", a, b)
	}
	seen := map[ID]bool{}
	for range 10_000 {
		id := NewID()
		if seen[id] {
			t.Fatalf("%q was minted twice", id)
		}
		seen[id] = true
	}
}

func TestParseIDRefusesWhatWasNotMinted(t *testing.T) {
	good := NewID()
	if _, err := ParseID(string(good)); err != nil {
		t.Errorf("ParseID(%q): %v", good, err)
	}
	for _, bad := range []string{"", "e-", string(NewSlotID()), string(good) + "0", "e-../../../../etc/passwdxxxx", "E" + string(good)[1:]} {
		if _, err := ParseID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseID(%q) = %v, want ErrInvalid", bad, err)
		}
	}
}

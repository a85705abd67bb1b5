package disk

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func names(list []rate) []env.SlotID {
	out := []env.SlotID{}
	for _, r := range list {
		out = append(out, r.slot)
	}
	return out
}

func TestTheFastestWritersAreThoseInExcess(t *testing.T) {
	ranking := []rate{{"a", 100}, {"b", 10}, {"c", 1}}
	for _, c := range []struct {
		tolerated float64
		want      []env.SlotID
	}{
		{200, []env.SlotID{}}, {111, []env.SlotID{}}, {110, []env.SlotID{"a"}}, {11, []env.SlotID{"a"}},
		{10, []env.SlotID{"a", "b"}}, {1, []env.SlotID{"a", "b"}}, {0.5, []env.SlotID{"a", "b", "c"}}, {0, []env.SlotID{"a", "b", "c"}},
	} {
		if diff := cmp.Diff(c.want, names(excess(ranking, c.tolerated))); diff != "" {
			t.Errorf("tolerated %v (-want +got):\n%s", c.tolerated, diff)
		}
	}
	if got := excess(nil, 0); len(got) != 0 {
		t.Errorf("of nobody: %v", got)
	}
}

func TestRatesCountWhatTheShortResourceLoses(t *testing.T) {
	before := map[env.SlotID]Written{"writer": {Bytes: 1000, Files: 5}, "idle": {Bytes: 7}, "back": {Bytes: 9}}
	now := map[env.SlotID]Written{
		"writer": {Bytes: 2000, Files: 5}, "maker": {Files: 10}, "idle": {Bytes: 7}, "new": {Bytes: 500},
		"back": {Bytes: 1}, // counted anew: nothing is known
	}
	want := []rate{{"maker", 81920}, {"writer", 2000}, {"new", 1000}}
	if diff := cmp.Diff(want, rates(before, now, time.Second/2, bytes), cmp.AllowUnexported(rate{})); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]rate{{"maker", 20}}, rates(before, now, time.Second/2, files), cmp.AllowUnexported(rate{})); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestALevelIsShortBelowItsMarkAndHasRoomAnEighthAboveIt(t *testing.T) {
	mark := Mark{Percent: 16}
	at := func(free uint64) level {
		return levelsOf("/x", Space{Bytes: 1000, FreeBytes: free}, mark, mark)[0]
	}
	for _, c := range []struct {
		free       uint64
		was, short bool
	}{
		{161, false, false}, {160, false, false}, {159, false, true}, {0, false, true},
		{160, true, true}, {179, true, true}, {180, true, false},
	} {
		if got := at(c.free).short(c.was); got != c.short {
			t.Errorf("%d of 1000 free, was short %t: short %t", c.free, c.was, got)
		}
	}
}

func TestTheLessIsLeftTheLessIsTolerated(t *testing.T) {
	mark := Mark{Amount: 3200} // half a sixteenth is 100
	const trickle = 100. / 3600
	for free, want := range map[uint64]float64{3300: 200. / 60, 3200: 100. / 60, 3160: 1, 3101: trickle, 3100: trickle, 3050: trickle, 3049: 0, 0: 0} {
		l := levelsOf("/x", Space{Bytes: 10000, FreeBytes: free}, mark, mark)[0]
		if got := l.tolerated(); got != want {
			t.Errorf("%d free: %v tolerated each second, want %v", free, got, want)
		}
	}
}

func TestALevelIsShortIfItWillBeBeforeTheNextLook(t *testing.T) {
	l := levelsOf("/x", Space{Bytes: 10000, FreeBytes: 1700}, Mark{Percent: 16}, Mark{})[0]
	for soon, want := range map[uint64]bool{0: false, 100: false, 101: true} {
		if l.soon = soon; l.short(false) != want {
			t.Errorf("100 above the mark and %d soon: short %t", soon, !want)
		}
	}
}

func TestAMarkOfNothingIsNeverReached(t *testing.T) {
	l := levelsOf("/x", Space{Bytes: 10000}, Mark{}, Mark{})[0]
	if l.soon = 100; l.short(false) || l.short(true) || l.near() {
		t.Error("a disk that is not guarded is short")
	}
}

func TestFilesystemsWithoutABoundOnFilesHaveNoSuchLevel(t *testing.T) {
	got := levelsOf("/x", Space{Bytes: 10}, Mark{Percent: 50}, Mark{Percent: 50})
	if len(got) != 1 || got[0].resource != bytes || got[0].keep != 5 {
		t.Errorf("levels = %+v", got)
	}
	got = levelsOf("/x", Space{Bytes: 10, Files: 200, FreeFiles: 8}, Mark{Amount: 3}, Mark{Percent: 6})
	if len(got) != 2 || got[1].keep != 12 || !got[1].short(false) {
		t.Errorf("levels = %+v", got)
	}
}

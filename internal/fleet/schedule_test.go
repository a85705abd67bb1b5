package fleet

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAScheduleListsTheOldestFirstAndStaysAsItIs(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	r := rand.New(rand.NewPCG(1, 2))
	s, want := newSchedule[int](), map[int]time.Time{}
	for range 5000 {
		key, at := r.IntN(200), begin.Add(time.Duration(r.Int64N(int64(time.Hour))))
		if r.IntN(3) == 0 {
			s.drop(key)
			delete(want, key)
		} else {
			s.set(key, at)
			want[key] = at
		}
	}
	var sorted []int
	for k := range want {
		sorted = append(sorted, k)
	}
	slices.SortFunc(sorted, func(a, b int) int { return want[a].Compare(want[b]) })
	for range 2 {
		got := s.oldest(1000, func(k int, at time.Time) (bool, bool) {
			if !at.Equal(want[k]) {
				t.Errorf("%d is due at %s, want %s", k, at, want[k])
			}
			return true, true
		})
		if diff := cmp.Diff(sorted, got); diff != "" {
			t.Fatal(diff)
		}
	}
	odd := s.oldest(3, func(k int, _ time.Time) (bool, bool) { return k%2 == 1, true })
	wantOdd := slices.DeleteFunc(slices.Clone(sorted), func(k int) bool { return k%2 == 0 })[:3]
	if diff := cmp.Diff(wantOdd, odd); diff != "" {
		t.Error(diff)
	}
	if none := s.oldest(3, func(int, time.Time) (bool, bool) { return false, false }); none != nil {
		t.Errorf("listed %v", none)
	}
}

func TestAnAnswerInUseIsNotForgotten(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b := newAnswerBook()
	for i, key := range []string{"a", "b", "c", "d"} {
		b.put(&answer{key: claimKey("t", key), expires: now.Add(time.Duration(i-1) * time.Minute)})
	}
	keys, early := b.old(now, 2, 1<<20, func(k ClaimKey) bool { return k == claimKey("t", "b") })
	if diff := cmp.Diff([]ClaimKey{claimKey("t", "a"), claimKey("t", "c")}, keys); diff != "" || early != 1 {
		t.Errorf("early %d; keys: %s", early, diff)
	}
	for _, key := range []string{"a", "b", "c", "d"} {
		b.remove(claimKey("t", key))
	}
	if b.bytes != 0 || len(b.ends.items)+len(b.ends.order) != 0 {
		t.Errorf("an empty book: %d bytes, %v", b.bytes, b.ends)
	}
}

package cgroups

import "testing"

func TestAShareIsMeasuredAsPodsAre(t *testing.T) {
	for millis, want := range map[int64][2]int64{
		1: {2, 1}, 1000: {1024, 100}, 4000: {4096, 0}, 1 << 40: {262144, 10_000},
	} {
		if got := sharesOf(millis); got != want[0] {
			t.Errorf("sharesOf(%d) = %d, want %d", millis, got, want[0])
		}
		if got := weightOf(millis); want[1] != 0 && got != want[1] {
			t.Errorf("weightOf(%d) = %d, want %d", millis, got, want[1])
		}
	}
	for last, millis := int64(0), int64(1); millis < 300_000; millis *= 2 {
		w := weightOf(millis)
		if w < last || w < 1 || w > 10_000 {
			t.Errorf("weightOf(%d) = %d after %d", millis, w, last)
		}
		last = w
	}
}

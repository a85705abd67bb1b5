package env

import (
	"errors"
	"testing"
)

func TestLimitsTakeThePlaceOfAClassesResources(t *testing.T) {
	class := Resources{CPUMillis: 1000, CPUBurstMillis: 800, CPUWeight: 7, MemoryBytes: 1 << 30, MemoryHighBytes: 900 << 20, SwapBytes: 5, PIDs: 9, OpenFiles: 11}
	change := func(f func(*Resources)) Resources {
		r := class
		f(&r)
		return r
	}
	for name, tt := range map[string]struct {
		l    Limits
		want Resources
	}{
		"none":                             {Limits{}, class},
		"more cpu":                         {Limits{CPUMillis: 3000}, change(func(r *Resources) { r.CPUMillis = 3000 })},
		"less cpu takes the burst with it": {Limits{CPUMillis: 500}, change(func(r *Resources) { r.CPUMillis, r.CPUBurstMillis = 500, 500 })},
		"a burst of its own":               {Limits{CPUMillis: 3000, CPUBurstMillis: 3000}, change(func(r *Resources) { r.CPUMillis, r.CPUBurstMillis = 3000, 3000 })},
		"no burst":                         {Limits{CPUBurstMillis: NoBurst}, change(func(r *Resources) { r.CPUBurstMillis = 0 })},
		"the mark keeps its share":         {Limits{MemoryBytes: 4 << 30}, change(func(r *Resources) { r.MemoryBytes, r.MemoryHighBytes = 4<<30, 3600<<20 })},
		"the most":                         {Limits{MemoryBytes: MaxMemoryBytes}, change(func(r *Resources) { r.MemoryBytes, r.MemoryHighBytes = MaxMemoryBytes, 900<<40 })},
	} {
		got, err := class.With(tt.l)
		if got != tt.want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tt.want)
		}
	}
	if _, err := class.With(Limits{CPUBurstMillis: 1001}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a burst above the CPU: %v, want ErrInvalid", err)
	}
}

func TestALaterLimitWinsAndTheOthersStay(t *testing.T) {
	got := Limits{CPUMillis: 1, MemoryBytes: 2}.Merge(Limits{MemoryBytes: 3, CPUBurstMillis: NoBurst})
	if want := (Limits{CPUMillis: 1, MemoryBytes: 3, CPUBurstMillis: NoBurst}); got != want {
		t.Errorf("merged = %+v, want %+v", got, want)
	}
}

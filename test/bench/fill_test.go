package bench

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"hearth/test/stage"
)

// BenchmarkPoolFill has an empty pool filled with a hundred slots, one after the other,
// while nothing else works on the node. An operation is a slot: slot-ms is what the
// agent says that one took, fill-s how long it was until all of them were ready.
func BenchmarkPoolFill(b *testing.B) {
	host.limit(b, poolSize)
	host.keepReady(b, 0)
	host.keepReady(b, 1) // an agent that has made none has no such metric
	var fills sample
	made, took := 0.0, 0.0
	for made < float64(b.N) {
		b.StopTimer()
		host.keepReady(b, 0)
		count, sum := prepared(b)
		b.StartTimer()
		begun := time.Now()
		host.keepReady(b, poolSize)
		fills = append(fills, time.Since(begun))
		b.StopTimer()
		countNow, sumNow := prepared(b)
		made, took = made+countNow-count, took+sumNow-sum
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(took/made*1000, "slot-ms")
	b.ReportMetric(fills.percentile(50).Seconds(), "fill-s")
}

// keepReady has the pool keep so many slots, and waits until it has them.
func (c *clients) keepReady(b *testing.B, slots int) {
	b.Helper()
	err := c.stage.KeepReady(slots)
	if err == nil {
		err = stage.Eventually(filling, func() error {
			pool, err := c.stage.Node.Pool()
			if err == nil && (int(pool.GetWant()) != slots || int(pool.GetReady()) != slots || pool.GetPreparing() != 0) {
				err = fmt.Errorf("pool has %d of %d slots ready, want %d", pool.GetReady(), pool.GetWant(), slots)
			}
			return err
		})
	}
	if err != nil {
		b.Fatal(err)
	}
}

// prepared is how many slots the agent has prepared, and the seconds that it took.
func prepared(b *testing.B) (count, sum float64) {
	b.Helper()
	for name, to := range map[string]*float64{"count": &count, "sum": &sum} {
		text, err := stage.Metric(`hearth_slot_prepare_seconds_` + name + `{class="` + stage.ClassName + `"}`)
		if err == nil {
			*to, err = strconv.ParseFloat(text, 64)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return count, sum
}

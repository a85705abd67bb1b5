package detect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

const subscribe = `{"id":1,"method":"mining.subscribe","params":[]}` + "\n"

var freezing = env.DetectionPolicy{Responses: map[string]string{"critical": "freeze"}}

var here, there = netip.MustParseAddrPort("100.96.0.2:40000"), netip.MustParseAddrPort("198.51.100.7:9")

// fakeKernel is the sensors as a table.
type fakeKernel struct {
	mu       sync.Mutex // guards all
	owners   map[flow.Key]Owner
	open     map[flow.Key][]Owner
	seen     map[uint64]sensorCounts
	watching map[uint64]bool
	watchErr error
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{owners: map[flow.Key]Owner{}, open: map[flow.Key][]Owner{}, seen: map[uint64]sensorCounts{}, watching: map[uint64]bool{}}
}

func (k *fakeKernel) watch(s Subject) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.watchErr == nil {
		k.watching[s.CgroupID] = true
	}
	return k.watchErr
}

func (k *fakeKernel) unwatch(cgroup uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.watching, cgroup)
	return nil
}

func (k *fakeKernel) counts(cgroup uint64) (sensorCounts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen[cgroup], nil
}

func (k *fakeKernel) owner(key flow.Key) (Owner, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, ok := k.owners[key]
	return o, ok
}

func (k *fakeKernel) holders(key flow.Key) ([]Owner, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open[key], nil
}

func (k *fakeKernel) close() error { return nil }

// bench is an engine on a fake kernel; its payloads come from a channel.
type bench struct {
	*Engine
	kernel   *fakeKernel
	payloads chan []byte
	isn      uint32
	stop     func()
}

func newBench(t testing.TB, cfg Config) *bench {
	t.Helper()
	if cfg.Respond == nil {
		cfg.Respond = func(context.Context, env.Detection) error { return nil }
	}
	b := &bench{kernel: newFakeKernel(), payloads: make(chan []byte)}
	began := time.Now()
	ended := make(chan struct{})
	var once sync.Once
	src := source{
		name: "payload",
		read: func() ([]byte, error) {
			select {
			case r := <-b.payloads:
				return r, nil
			case <-ended:
				return nil, errors.New("closed")
			}
		},
		close: func() error { once.Do(func() { close(ended) }); return nil },
	}
	e, err := newEngine(cfg, b.kernel, func() ([]source, error) { src.handle = b.onPayload; return []source{src}, nil },
		func() time.Duration { return time.Since(began) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Engine = e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *bench) bind(t testing.TB, slot env.SlotID, net env.NetID) {
	t.Helper()
	if err := b.Bind(Subject{Slot: slot, NetID: net, CgroupID: uint64(net) + 1000, Class: "demo", Policy: freezing}); err != nil {
		t.Fatal(err)
	}
}

// mine makes a flow of its own that mines.
func (b *bench) mine(net env.NetID) {
	b.isn += 10_000
	b.payloads <- encodePayload(flow.Segment{
		Key:       flow.Key{NetID: net, Protocol: flow.TCP, Local: here, Remote: there},
		Direction: flow.Out, Seq: b.isn, ISN: b.isn, HasISN: true, Data: []byte(subscribe), At: b.mono(),
	})
}

func TestFloodOfFindingsIsOneDetectionWithACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var frozen []env.Detection
		b := newBench(t, Config{Respond: func(_ context.Context, d env.Detection) error { frozen = append(frozen, d); return nil }})
		b.bind(t, "s-1", 1)
		b.bind(t, "s-2", 2)
		for range 500 {
			b.mine(1)
		}
		b.mine(2)
		synctest.Wait()
		got := b.Recent(0)
		if len(got) != 2 || len(frozen) != 2 {
			t.Fatalf("%d detections, %d freezes; want 2 and 2: %+v", len(got), len(frozen), got)
		}
		if got[0].Count != 500 || got[1].Count != 1 {
			t.Errorf("counts %d and %d, want 500 and 1", got[0].Count, got[1].Count)
		}
		time.Sleep(2 * time.Minute)
		b.mine(1)
		synctest.Wait()
		if got := b.Recent(1); got[0].Count != 1 || len(b.Recent(0)) != 3 {
			t.Errorf("after the window: %+v", b.Recent(0))
		}
		b.stop()
	})
}

func TestLoginInSingleBytesInAnyOrderIsDetectedOnce(t *testing.T) {
	login := strings.Repeat(" ", 300) + `{"id":1,"jsonrpc":"2.0","method":"login","params":{"login":"x.1","pass":"y","agent":"z/1"}}` + "\n"
	for name, order := range map[string]func(int) int{
		"forwards":  func(i int) int { return i },
		"backwards": func(i int) int { return len(login) - 1 - i },
		"scattered": func(i int) int { return i * 11 % len(login) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, Config{})
				b.bind(t, "s-1", 1)
				const isn = 0xffffff80
				for i := range len(login) {
					at := order(i)
					b.payloads <- encodePayload(flow.Segment{
						Key: flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there},
						Seq: isn + uint32(at), ISN: isn, HasISN: true, Data: []byte(login[at : at+1]),
					})
				}
				synctest.Wait()
				if got := b.Recent(0); len(got) != 1 || got[0].Rule != "mining.cryptonote" || got[0].Count != 1 {
					t.Errorf("detections %+v", got)
				}
				b.stop()
			})
		})
	}
}

func TestResponseThatFailsIsSaidAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		b := newBench(t, Config{Respond: func(context.Context, env.Detection) error {
			if tries++; tries < 3 {
				return errors.New("cgroup is gone")
			}
			return nil
		}})
		b.bind(t, "s-1", 1)
		b.mine(1)
		b.mine(1) // at once: not tried again yet
		synctest.Wait()
		first := b.Recent(0)
		if len(first) != 1 || first[0].Response != env.ResponseAlert || first[0].ResponseError != "cgroup is gone" || tries != 1 {
			t.Fatalf("after the first: %+v, %d tries", first, tries)
		}
		for range 3 {
			time.Sleep(2 * time.Second)
			b.mine(1)
			synctest.Wait()
		}
		if last := b.Recent(1)[0]; last.Response != env.ResponseFreeze || last.ResponseError != "" || tries != 3 {
			t.Errorf("at the end: %+v, %d tries", last, tries)
		}
		b.stop()
	})
}

func TestResponseThatHangsHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{Respond: func(ctx context.Context, d env.Detection) error {
			if d.Slot == "s-1" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}})
		b.bind(t, "s-1", 1)
		b.bind(t, "s-2", 2)
		b.mine(1)
		b.mine(2)
		synctest.Wait()
		if got := b.Recent(0); len(got) != 1 || got[0].Slot != "s-2" {
			t.Fatalf("while one hangs: %+v", got)
		}
		time.Sleep(respondWithin)
		synctest.Wait()
		if got := b.Recent(1)[0]; got.Slot != "s-1" || got.Response != env.ResponseAlert || got.ResponseError == "" {
			t.Errorf("after its time: %+v", got)
		}
		b.stop()
	})
}

func TestNeighboursDecoyDoesNotShieldAMiner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{})
		b.bind(t, "s-1", 1)
		b.bind(t, "s-2", 2)
		key := flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there}
		decoy := Owner{PID: 22, Command: "decoy", CgroupID: 1002, NetID: 2}
		b.kernel.owners[key] = decoy
		b.kernel.open[key] = []Owner{decoy, {PID: 11, Command: "miner", CgroupID: 1001}}
		b.mine(1)
		synctest.Wait()
		if got := b.Recent(0); len(got) != 1 || got[0].PID != 11 || got[0].Response != env.ResponseFreeze {
			t.Errorf("detections %+v, want one that names pid 11 and freezes", got)
		}
		b.stop()
	})
}

func TestNoteOfASlotThatIsGoneIsNotAMismatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{})
		b.bind(t, "s-1", 1)
		b.kernel.owners[flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there}] = Owner{PID: 9, CgroupID: 555, NetID: 3}
		b.mine(1)
		synctest.Wait()
		if got := b.Recent(0); len(got) != 1 || got[0].PID != 0 || got[0].Response != env.ResponseFreeze {
			t.Errorf("detections %+v, want one without a process that freezes", got)
		}
		b.stop()
	})
}

func TestBadRulesLeaveTheOldOnesRunning(t *testing.T) {
	layer := fstest.MapFS{}
	b := newBench(t, Config{Rules: []fs.FS{layer}})
	before := b.Rules()
	layer["x.yaml"] = &fstest.MapFile{Data: []byte("version: 1\nrules:\n- {name: a.b, severity: low, event: exec, description: d, condition: 'exec.pidd == 1'}\n")}
	err := b.Reload(t.Context())
	if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), "pidd") || b.Rules() != before {
		t.Errorf("Reload = %v, set replaced: %v", err, b.Rules() != before)
	}
	layer["x.yaml"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(string(layer["x.yaml"].Data), "pidd", "pid"))}
	layer["x.fixtures.yaml"] = &fstest.MapFile{Data: []byte("version: 1\nfixtures:\n- {name: hit, exec: {path: /a}, expect: [a.b]}\n")}
	if err := b.Reload(t.Context()); err == nil || b.Rules() != before {
		t.Errorf("a set without a negative fixture: %v", err)
	}
	layer["x.yaml"].Data = []byte(strings.ReplaceAll(string(layer["x.yaml"].Data), "exec.pid == 1", `exec.path == "/a"`))
	layer["x.fixtures.yaml"].Data = append(layer["x.fixtures.yaml"].Data, "- {name: miss, exec: {path: /b}, expect: []}\n"...)
	if err := b.Reload(t.Context()); err != nil || b.Rules() == before || len(b.Rules().Rules()) != len(before.Rules())+1 {
		t.Errorf("Reload = %v", err)
	}
}

func TestSubscriberThatIsBehindLosesItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{Recent: 50})
		ctx, cancel := context.WithCancel(t.Context())
		ch := b.Subscribe(ctx)
		const n = 100
		for i := range n {
			b.bind(t, env.SlotID(fmt.Sprint("s-", i)), env.NetID(i+1))
			b.mine(env.NetID(i + 1))
		}
		synctest.Wait()
		if got := len(ch); got != subscriberBacklog {
			t.Errorf("%d wait, want %d", got, subscriberBacklog)
		}
		if got := b.recent.dropped.Load(); got != n-subscriberBacklog {
			t.Errorf("%d dropped, want %d", got, n-subscriberBacklog)
		}
		if got := len(b.Recent(0)); got != 50 {
			t.Errorf("%d kept, want 50", got)
		}
		cancel()
		synctest.Wait()
		for range ch { // ends: the channel is closed
		}
		b.stop()
	})
}

func TestLostEventsMakeAFinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{})
		b.bind(t, "s-1", 1)
		b.kernel.mu.Lock()
		b.kernel.seen[1001] = sensorCounts{sensorExec: {emitted: 5, shed: 7, lost: 2}}
		b.kernel.mu.Unlock()
		time.Sleep(2*tick + 1)
		synctest.Wait()
		got := b.Recent(0)
		if len(got) != 1 || got[0].Rule != ruleFlood || got[0].Detail != "exec events not seen: 7 over the budget, 2 lost" || got[0].Count != 1 {
			t.Errorf("detections %+v", got)
		}
		b.Unbind("s-1")
		if total := b.budget.totals()[sensorExec]; total != (fates{5, 7, 2}) {
			t.Errorf("totals = %+v", total)
		}
		b.stop()
	})
}

func TestBindThatTheKernelRefusesLeavesNothing(t *testing.T) {
	b := newBench(t, Config{})
	b.kernel.watchErr = env.ErrExhausted
	s := Subject{Slot: "s-1", NetID: 1, CgroupID: 2}
	if err := b.Bind(s); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("Bind = %v", err)
	}
	b.kernel.watchErr = nil
	if err := b.Bind(s); err != nil {
		t.Errorf("Bind again = %v", err)
	}
	if err := b.Bind(Subject{Slot: "s-2", NetID: 3}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("Bind without a cgroup = %v", err)
	}
}

func TestEventLineIsOneObjectWhateverTheBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		b := newBench(t, Config{Events: &lines})
		b.bind(t, "s-1", 1)
		b.Claimed("s-1", "e-1")
		b.payloads <- encodePayload(flow.Segment{
			Key: flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there}, HasISN: true,
			Data: []byte("{\"method\":\"mining.subscribe\",\"x\":\"\n\xff\x00</script>\u2028\"}"),
		})
		synctest.Wait()
		b.stop()
		if n := strings.Count(lines.String(), "\n"); n != 1 {
			t.Fatalf("%d lines: %q", n, lines.String())
		}
		var d env.Detection
		if err := json.Unmarshal([]byte(lines.String()), &d); err != nil || d.Environment != "e-1" || d.Destination != there {
			t.Errorf("%q: %+v, %v", lines.String(), d, err)
		}
	})
}

func TestConflictingBytesAreAFindingAndNeverMoreThanAnAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Config{})
		b.bind(t, "s-1", 1)
		for _, text := range []string{"aaaa", "bbbb", "cccc"} {
			b.payloads <- encodePayload(flow.Segment{
				Key: flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there}, HasISN: true, Data: []byte(text),
			})
		}
		synctest.Wait()
		if got := b.Recent(0); len(got) != 1 || got[0].Rule != ruleConflict || got[0].Response != env.ResponseAlert {
			t.Errorf("detections %+v", got)
		}
		b.stop()
	})
}

func TestClassChoosesTheResponseAndTheRuleBoundsIt(t *testing.T) {
	for _, c := range []struct {
		class         string
		ceiling, want env.Response
	}{
		{"", env.ResponseFreeze, env.ResponseAlert},
		{"freeze", env.ResponseFreeze, env.ResponseFreeze},
		{"freeze", env.ResponseAlert, env.ResponseAlert},
		{"freeze", env.ResponseRecord, env.ResponseRecord},
		{"record", env.ResponseFreeze, env.ResponseRecord},
		{"", env.ResponseRecord, env.ResponseRecord},
	} {
		p := env.DetectionPolicy{Responses: map[string]string{}}
		if c.class != "" {
			p.Responses["high"] = c.class
		}
		if got := choose(p, env.SeverityHigh, c.ceiling); got != c.want {
			t.Errorf("class %q, ceiling %s: %s, want %s", c.class, c.ceiling, got, c.want)
		}
	}
}

func TestMetricsAreWellFormedAndCountDetections(t *testing.T) {
	b := newBench(t, Config{})
	b.bind(t, "s-1", 1)
	b.mine(1)
	b.stop()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(b.Engine)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "hearth_") || f.GetHelp() == "" {
			t.Errorf("metric %s: %q", f.GetName(), f.GetHelp())
		}
		if f.GetName() == "hearth_detections_total" {
			m := f.GetMetric()[0]
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			seen = m.GetCounter().GetValue() == 1 && strings.Join(labels, " ") == "class=demo rule=mining.stratum_v1 severity=critical"
		}
	}
	if !seen {
		t.Error("hearth_detections_total{rule,severity,class} does not count the detection")
	}
}

// Records through decoding, reassembly and the built-in rules.
func BenchmarkPayloads(b *testing.B) {
	for name, text := range map[string]string{"TLS": "\x16\x03\x01\x02\x00\x01\x00" + strings.Repeat("\x9d\xe1\x55", 160), "JSON": `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}`} {
		b.Run(name, func(b *testing.B) {
			e := newBench(b, Config{})
			e.bind(b, "s-1", 1)
			e.stop()
			record := encodePayload(flow.Segment{Key: flow.Key{NetID: 1, Protocol: flow.TCP, Local: here, Remote: there}, HasISN: true, Data: []byte(text)})
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++ // a flow of its own
				record[20], record[21], record[24], record[28] = byte(i), byte(i>>8), byte(i>>16), byte(i>>16)
				e.onPayload(record)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

package detect

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// budgetRate is a slot's budget of events of one kind: so many a second, and
// as many at once.
const budgetRate = 1000

// sensorSet is the loaded sensors.
type sensorSet struct {
	objects  bpf.SensorsObjects
	links    []link.Link
	subjects map[uint64]struct{} // guarded by mu

	mu     sync.Mutex // guards subjects and the map `wanted`
	walker *link.Iter // nil where it does not load

	payloads *ebpf.Map // set before Run
}

// Open loads and attaches the sensors and compiles the rules; it starts
// nothing. payloads is the island program's ring buffer of struct
// payload_event, or nil until Payloads is called; it stays the caller's. The error wraps env.ErrUnsupported if
// this kernel cannot run the sensors, env.ErrInvalid if the rules are wrong.
func Open(cfg Config, payloads *ebpf.Map, log *slog.Logger) (*Engine, error) {
	return open(cfg, payloads, budgetRate, log)
}

func open(cfg Config, payloads *ebpf.Map, perSecond uint64, log *slog.Logger) (*Engine, error) {
	if payloads != nil && payloads.Type() != ebpf.RingBuf {
		return nil, fmt.Errorf("open detection: %w: payloads is not a ring buffer", env.ErrInvalid)
	}
	s, err := loadSensors(perSecond)
	if err != nil {
		return nil, err
	}
	s.payloads = payloads
	var e *Engine
	sources := func() ([]source, error) { return openRings(e, s) }
	e, err = newEngine(cfg, s, sources, monotonic, log)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.walker == nil {
		log.Info("owners of flows are known from their connects only", "missing", "iter/task_file")
	}
	return e, nil
}

func loadSensors(perSecond uint64) (*sensorSet, error) {
	spec, err := bpf.LoadSensors()
	if err != nil {
		return nil, fmt.Errorf("read sensors: %w", err)
	}
	for name, value := range map[string]uint64{
		bpf.SensorsVarCostNs: uint64(time.Second) / perSecond, bpf.SensorsVarBurstNs: uint64(time.Second),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s of the sensors: %w", name, err)
		}
	}
	s := &sensorSet{subjects: map[uint64]struct{}{}}
	if err := s.load(spec); err != nil {
		return nil, errors.Join(unsupported(err), s.close())
	}
	return s, nil
}

// load brings in the sensors, then the walker, which may be missing.
func (s *sensorSet) load(spec *ebpf.CollectionSpec) error {
	walker := spec.Programs[bpf.SensorsProgFindOwner]
	if err := spec.LoadAndAssign(&s.objects.SensorsMaps, nil); err != nil {
		return fmt.Errorf("load sensors' maps: %w", err)
	}
	shared := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.SensorsMapSubjects: s.objects.Subjects, bpf.SensorsMapConnects: s.objects.Connects,
		bpf.SensorsMapExecs: s.objects.Execs, bpf.SensorsMapConnecting: s.objects.Connecting,
		bpf.SensorsMapOwners: s.objects.Owners, bpf.SensorsMapWanted: s.objects.Wanted,
	}}
	var tracing struct {
		OnExec      *ebpf.Program `ebpf:"on_exec"`
		OnSockState *ebpf.Program `ebpf:"on_sock_state"`
	}
	if err := spec.LoadAndAssign(&tracing, &shared); err != nil {
		return fmt.Errorf("load sensors: %w", err)
	}
	s.objects.OnExec, s.objects.OnSockState = tracing.OnExec, tracing.OnSockState
	for _, p := range []*ebpf.Program{tracing.OnExec, tracing.OnSockState} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return fmt.Errorf("attach sensor %s: %w", p, err)
		}
		s.links = append(s.links, l)
	}
	if walker != nil {
		s.loadWalker(spec, shared)
	}
	return nil
}

// loadWalker is an extra: a flow's owner is mostly known from its connect.
func (s *sensorSet) loadWalker(spec *ebpf.CollectionSpec, shared ebpf.CollectionOptions) {
	var w struct {
		FindOwner *ebpf.Program `ebpf:"find_owner"`
	}
	if err := spec.LoadAndAssign(&w, &shared); err != nil {
		return
	}
	s.objects.FindOwner = w.FindOwner
	it, err := link.AttachIter(link.IterOptions{Program: w.FindOwner})
	if err == nil {
		s.walker = it
	}
}

// unsupported gives a kernel's refusal its type.
func unsupported(err error) error {
	var verifier *ebpf.VerifierError
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrNotExist) || errors.As(err, &verifier) {
		return fmt.Errorf("%w: %w", &env.UnsupportedError{
			Feature: "detection's sensors (tp_btf)", Needs: "Linux 6.1 with BTF, CAP_BPF and CAP_PERFMON",
		}, err)
	}
	return err
}

func (s *sensorSet) watch(subject Subject) error {
	value := bpf.SensorsSubject{NetId: uint32(subject.NetID)}
	err := s.objects.Subjects.Update(subject.CgroupID, &value, ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return fmt.Errorf("watch cgroup %d: %w", subject.CgroupID, env.ErrExists)
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("watch cgroup %d: %w: the sensors' map holds %d slots", subject.CgroupID, env.ErrExhausted, s.objects.Subjects.MaxEntries())
	case err != nil:
		return fmt.Errorf("watch cgroup %d: %w", subject.CgroupID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subjects[subject.CgroupID] = struct{}{}
	return nil
}

func (s *sensorSet) unwatch(cgroup uint64) error {
	s.mu.Lock()
	delete(s.subjects, cgroup)
	s.mu.Unlock()
	if err := s.objects.Subjects.Delete(cgroup); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("unwatch cgroup %d: %w", cgroup, err)
	}
	return nil
}

func (s *sensorSet) counts(cgroup uint64) (sensorCounts, error) {
	var v bpf.SensorsSubject
	if err := s.objects.Subjects.Lookup(cgroup, &v); err != nil {
		return sensorCounts{}, fmt.Errorf("read counts of cgroup %d: %w", cgroup, err)
	}
	var out sensorCounts
	for i, c := range v.Counts {
		out[i] = fates{emitted: c.Emitted, shed: c.Shed, lost: c.Lost}
	}
	return out, nil
}

func (s *sensorSet) owner(k flow.Key) (Owner, bool) {
	if k.Protocol != flow.TCP || !k.Local.Addr().Is4() || !k.Remote.Addr().Is4() {
		return Owner{}, false
	}
	var value [ownerSize]byte
	tuple := encodeTuple(k)
	if err := s.objects.Owners.Lookup(tuple[:], value[:]); err != nil {
		return Owner{}, false
	}
	return decodeOwner(value[:]), true
}

// maxHolders bounds what a flow whose socket thousands have inherited costs.
const maxHolders = 64

// holders walks the open files of every process.
func (s *sensorSet) holders(k flow.Key) ([]Owner, error) {
	if s.walker == nil {
		return nil, &env.UnsupportedError{Feature: "iter/task_file", Needs: "Linux 6.1 with BTF"}
	}
	if k.Protocol != flow.TCP || !k.Local.Addr().Is4() || !k.Remote.Addr().Is4() {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tuple := encodeTuple(k)
	if err := s.objects.Wanted.Put(uint32(0), tuple[:]); err != nil {
		return nil, fmt.Errorf("ask for a flow's holders: %w", err)
	}
	r, err := s.walker.Open()
	if err != nil {
		return nil, fmt.Errorf("walk open files: %w", err)
	}
	defer func() { _ = r.Close() }() // nothing was written
	records, err := io.ReadAll(io.LimitReader(r, maxHolders*holderSize))
	if err != nil {
		return nil, fmt.Errorf("walk open files: %w", err)
	}
	return decodeHolders(records, func(cgroup uint64) bool { _, ok := s.subjects[cgroup]; return ok }), nil
}

func (s *sensorSet) close() error {
	var errs []error
	if s.walker != nil {
		errs = append(errs, s.walker.Close())
	}
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	for _, c := range s.closers() {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// closers lists what was loaded; after a fault that may be a part.
func (s *sensorSet) closers() []io.Closer {
	var all []io.Closer
	for _, m := range []*ebpf.Map{
		s.objects.Subjects, s.objects.Connects, s.objects.Execs,
		s.objects.Connecting, s.objects.Owners, s.objects.Wanted,
	} {
		if m != nil {
			all = append(all, m)
		}
	}
	for _, p := range []*ebpf.Program{s.objects.OnExec, s.objects.OnSockState, s.objects.FindOwner} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// monotonic is CLOCK_MONOTONIC, the clock of bpf_ktime_get_ns.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail: the clock exists
	return time.Duration(ts.Nano())
}

// Payloads gives an engine that was opened without it the ring of first
// payloads. Opening, which takes a while, need not wait for that. Call it before
// Run.
func (e *Engine) Payloads(m *ebpf.Map) {
	if s, ok := e.kernel.(*sensorSet); ok { // tests have other kernels
		s.payloads = m
	}
}

// openRings opens the three rings for reading.
func openRings(e *Engine, s *sensorSet) ([]source, error) {
	if s.payloads == nil {
		return nil, fmt.Errorf("%w: the ring of payloads was not given", env.ErrState)
	}
	var out []source
	for _, ring := range []struct {
		name   string
		m      *ebpf.Map
		handle func([]byte)
	}{
		{"payload", s.payloads, e.onPayload},
		{"connect", s.objects.Connects, e.onConnect},
		{"exec", s.objects.Execs, e.onExec},
	} {
		r, err := ringbuf.NewReader(ring.m)
		if err != nil {
			for _, s := range out {
				_ = s.close() // never read from
			}
			return nil, fmt.Errorf("open %s ring: %w", ring.name, err)
		}
		var record ringbuf.Record
		out = append(out, source{
			name: ring.name, handle: ring.handle, close: r.Close,
			read: func() ([]byte, error) {
				err := r.ReadInto(&record)
				return record.RawSample, err
			},
		})
	}
	return out, nil
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// Store keeps the fleet's desired state in the cluster: one Environment for each
// record, and one Secret with the epoch and the API keys. It implements
// fleet.Store.
type Store struct {
	log    *slog.Logger
	c      *Client
	secret secret
	seal   sealer
	cfg    StoreConfig
	behind *behind

	metrics *StoreMetrics

	mu      sync.Mutex // guards all below and what the comment of entry says
	entries map[env.ID]*entry
	byUID   map[types.UID]env.ID // of the entries whose objects are known
}

// StoreConfig is what a Store needs to know.
type StoreConfig struct {
	// Namespace has the Secret.
	Namespace string
	// Seal is the key by which controllers know what they made. With another one
	// everything in the cluster is somebody else's.
	Seal []byte
	// Lost tells that another controller leads: nothing is written any more. Nil
	// is never.
	Lost func() bool
	// Address is the host and port of a node's Guest API, "" if it is not known.
	// Nil knows none. It must not block, nor use the Store.
	Address func(node string) string
}

// secretName is that of the Secret with the epoch and the API keys.
const secretName = "hearth-controller"

// entry is one record and the object that holds it.
type entry struct {
	id env.ID

	// io is held over each request about the object, so that they come one after
	// the other. It guards have and status.
	io     sync.Mutex
	have   object
	status v1alpha1.EnvironmentStatus // as last written or read

	// Guarded by Store.mu.
	uid types.UID // of the object, empty while it is not known
	// At most one of want, forget and refused says what is to
	// be written behind; want stays.
	want    *fleet.Record
	forget  bool
	refused string
}

var _ fleet.Store = (*Store)(nil)

// OpenStore makes a store and starts what writes behind, which Close ends.
func OpenStore(log *slog.Logger, c *Client, cfg StoreConfig, m *StoreMetrics) *Store {
	s := &Store{
		log: log, c: c, cfg: cfg, metrics: m, seal: cfg.Seal, entries: map[env.ID]*entry{}, byUID: map[types.UID]env.ID{},
		secret: secret{c: c, namespace: cfg.Namespace, name: secretName},
	}
	s.behind = newBehind(s)
	return s
}

// listPage is how many objects one answer holds at most.
const listPage = 500

// Load lists every Environment, and reads the API keys.
func (s *Store) Load() (fleet.State, error) {
	var st fleet.State
	opts := metav1.ListOptions{Limit: listPage}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 3*callTimeout)
		page, err := s.c.environments("").List(ctx, opts)
		cancel()
		if err != nil {
			return fleet.State{}, failed("list environments", err)
		}
		s.mu.Lock()
		for i := range page.Items {
			o := &page.Items[i]
			if r := s.seal.recordOf(o); r != nil {
				st.Records = append(st.Records, r)
				s.entries[r.ID()] = &entry{id: r.ID(), have: s.seal.objectFrom(o), status: o.Status, want: s.seal.recordOf(o)}
				s.name(s.entries[r.ID()], o.UID)
			}
		}
		s.mu.Unlock()
		if opts.Continue = page.Continue; opts.Continue == "" {
			break
		}
	}
	var err error
	st.APIKeys, err = s.secret.apiKeys()
	return st, err
}

// NextEpoch raises the epoch. It is good only if this controller led until then: of
// one that took the lease meanwhile it would be the higher, and nodes would refuse
// the one that leads.
func (s *Store) NextEpoch() (uint64, error) {
	epoch, err := s.secret.nextEpoch()
	if err == nil {
		err = s.mayWrite()
	}
	return epoch, err
}

// Save writes what is decided of one record, or one API key.
func (s *Store) Save(c fleet.Change) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if err := s.mayWrite(); err != nil {
		return err
	}
	switch {
	case c.Record != nil:
		err := s.saveRecord(c.Record)
		s.metrics.wrote(writeSave, err)
		return err
	case c.DeleteRecord != "":
		err := s.forget(c.DeleteRecord)
		s.metrics.wrote(writeSave, err)
		return err
	case c.APIKey != nil:
		return s.secret.putAPIKey(*c.APIKey)
	case c.DeleteAPIKey != "":
		return s.secret.deleteAPIKey(c.DeleteAPIKey)
	case c.JoinToken != nil:
		return fmt.Errorf("%w: join tokens: in Kubernetes agents join by their service account", env.ErrUnsupported)
	default:
		return nil // there is no join token to delete
	}
}

func (s *Store) lost() bool { return s.cfg.Lost != nil && s.cfg.Lost() }

func (s *Store) mayWrite() error {
	if s.lost() {
		return fmt.Errorf("%w: another controller leads", env.ErrSuperseded)
	}
	return s.c.mayWrite()
}

func (s *Store) saveRecord(r *fleet.Record) error {
	e := s.enter(r)
	defer e.io.Unlock()
	if e.have.presence == gone && !r.Ended {
		return fmt.Errorf("save environment %s: %w: the object was deleted", e.have.ref, env.ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := s.run(ctx, e, r, steps(e.have, r)); err != nil {
		if e.have.presence == gone || e.have.presence == absent && !errors.Is(err, env.ErrUnavailable) {
			s.remove(r.ID(), e)
		}
		return err
	}
	s.mu.Lock()
	e.want, e.forget, e.refused = r, false, ""
	s.name(e, e.have.uid)
	s.mu.Unlock()
	s.tidy(r.ID(), e, false)
	if _, differs := s.statusFor(e, r, ""); differs {
		s.behind.add(r.ID(), delayOf(r))
	}
	return nil
}

// forget is a deletion that is waited for.
func (s *Store) forget(id env.ID) error {
	e := s.entry(id)
	if e == nil {
		return nil
	}
	e.io.Lock()
	defer e.io.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := s.run(ctx, e, s.wanted(e), forgetting(e.have)); err != nil {
		return err
	}
	s.remove(id, e)
	return nil
}

// run performs the steps. R is nil if none of them needs it. The caller holds io.
func (s *Store) run(ctx context.Context, e *entry, r *fleet.Record, todo []step) error {
	for _, st := range todo {
		err := s.do(ctx, e, r, st)
		if err == nil {
			continue
		}
		what := fmt.Sprintf("%s environment %s", st, e.have.ref)
		if st == stepCreate || !s.c.isGone(ctx, e.have.ref, err) {
			if errors.Is(err, env.ErrExists) || errors.Is(err, env.ErrNotFound) {
				return fmt.Errorf("%s: %w", what, err)
			}
			return failed(what, err)
		}
		e.have.presence = gone
		if st == stepPlace && r != nil && !r.Ended {
			return fmt.Errorf("%s: %w: the object was deleted", what, env.ErrNotFound)
		}
		return nil
	}
	return nil
}

func (s *Store) do(ctx context.Context, e *entry, r *fleet.Record, st step) error {
	var o *v1alpha1.Environment
	var err error
	switch st {
	case stepCreate:
		if o, e.have.name, err = s.c.create(ctx, s.seal, r); err == nil && !samePlacement(o.Spec.Placement, placementOf(r)) {
			o, err = s.c.place(ctx, s.seal.objectFrom(o), r) // one that an attempt before had made
		}
	case stepPlace:
		o, err = s.c.place(ctx, e.have, r)
	case stepClear:
		o, err = s.c.apply(ctx, e.have.ref, applied{})
	case stepDelete:
		if err = s.c.delete(ctx, e.have.ref); err == nil {
			e.have.deleting = true
		}
	case stepLetGo:
		err = s.c.letGo(ctx, e.have.ref, e.have.finalizers)
		if err == nil {
			e.have.presence = gone
		}
	}
	if err == nil && o != nil {
		e.have = s.seal.objectFrom(o)
	}
	return err
}

// enter is the record's entry, whose io the caller holds from then on. One that was
// forgotten while its io was waited for is not the record's any more.
func (s *Store) enter(r *fleet.Record) *entry {
	for {
		s.mu.Lock()
		e := s.entryOf(r)
		s.mu.Unlock()
		e.io.Lock()
		if s.entry(r.ID()) == e {
			return e
		}
		e.io.Unlock()
	}
}

// entryOf is the record's entry, made if there is none yet. The caller holds mu.
func (s *Store) entryOf(r *fleet.Record) *entry {
	e := s.entries[r.ID()]
	if e == nil {
		e = &entry{id: r.ID(), have: object{ref: ref{namespace: r.Environment.GetTenant(), name: string(r.ID())}}}
		if ns, name, ok := splitObject(r.Object); ok {
			e.have = object{ref: ref{ns, name, types.UID(r.UID)}, theirs: true, presence: present}
		}
		s.entries[r.ID()] = e
	}
	return e
}

// splitObject reads a record's Object.
func splitObject(s string) (namespace, name string, ok bool) { return strings.Cut(s, "/") }

// uidOf is that of the environment's object; empty while it is not known.
func (s *Store) uidOf(id string) types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[env.ID(id)]; e != nil {
		return e.uid
	}
	return ""
}

func (s *Store) entry(id env.ID) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id]
}

func (s *Store) wanted(e *entry) *fleet.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.want
}

func (s *Store) remove(id env.ID, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(id, e)
}

// drop forgets an entry. The caller holds mu.
func (s *Store) drop(id env.ID, e *entry) {
	if s.entries[id] == e {
		delete(s.entries, id)
		delete(s.byUID, e.uid)
	}
}

// unmake lets the entry be one of an object that is to be made: what the Store
// deleted was forgotten, and is not what somebody tore away. The caller holds io.
func (s *Store) unmake(e *entry) {
	if e.have.theirs || e.have.presence != gone {
		return
	}
	e.have, e.status = object{ref: ref{namespace: e.have.namespace, name: string(e.id)}}, v1alpha1.EnvironmentStatus{}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byUID, e.uid)
	e.uid = ""
}

// name notes which object an entry's is. The caller holds mu.
func (s *Store) name(e *entry, uid types.UID) {
	if uid != "" {
		e.uid = uid
		s.byUID[uid] = e.id
	}
}

// idOf is the environment that the object stands for. One whose object is known is
// known by that, whatever was done to the object since.
func (s *Store) idOf(o *v1alpha1.Environment) env.ID {
	s.mu.Lock()
	id, ok := s.byUID[o.UID]
	s.mu.Unlock()
	if ok {
		return id
	}
	return s.seal.idOf(o)
}

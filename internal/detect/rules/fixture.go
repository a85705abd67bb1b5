package rules

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// fixtureFile is a file of fixtures.
type fixtureFile struct {
	Version  int       `json:"version"`
	Fixtures []fixture `json:"fixtures"`
}

// fixture is an event and the rules of its layer that must match it: exactly
// these. One of Out, In, Base64, Exec and Connect is set.
type fixture struct {
	Name string `json:"name"`
	// Out and In are what the environment or its peer sends, a segment each.
	Out []string `json:"out,omitempty"`
	In  []string `json:"in,omitempty"`
	// Base64 is one segment that is not text; Direction is its direction.
	Base64    string       `json:"base64,omitempty"`
	Direction string       `json:"direction,omitempty"`
	Exec      *execFixture `json:"exec,omitempty"`
	Connect   *connFixture `json:"connect,omitempty"`
	Expect    []string     `json:"expect"`
}

type execFixture struct {
	UID  int      `json:"uid,omitempty"`
	Comm string   `json:"comm,omitempty"`
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
}

type connFixture struct {
	Comm        string `json:"comm,omitempty"`
	RemoteAddr  string `json:"remote_addr"`
	RemotePort  int    `json:"remote_port"`
	Established bool   `json:"established,omitempty"`
}

// prove runs every fixture and checks that every rule is shown both ways.
func prove(rules map[string]*Rule, fixtures []fixture) error {
	set := newSet(rules)
	var errs []error
	hits, misses := map[string]bool{}, map[string]bool{}
	for _, f := range fixtures {
		kind, err := f.run(set)
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: fixture %.80q: %w", env.ErrInvalid, f.Name, err))
			continue
		}
		for name, r := range rules {
			if slices.Contains(f.Expect, name) {
				hits[name] = true
			} else if r.Event == kind {
				misses[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		if !hits[name] && !rules[name].Disabled {
			errs = append(errs, fmt.Errorf("%w: rule %q has no fixture that it matches", env.ErrInvalid, name))
		}
		if !misses[name] {
			errs = append(errs, fmt.Errorf("%w: rule %q has no fixture of its kind that it does not match", env.ErrInvalid, name))
		}
	}
	return errors.Join(errs...)
}

// run plays the fixture and compares what matched with what should.
func (f *fixture) run(set *Set) (Kind, error) {
	switch {
	case f.Exec != nil:
		x := f.Exec
		return KindExec, f.compare(matchNames(set, &Exec{PID: 1, UID: x.UID, Comm: x.Comm, Path: x.Path, Args: x.Args}))
	case f.Connect != nil:
		c := f.Connect
		return KindConnect, f.compare(matchNames(set, &Connect{
			PID: 1, Comm: c.Comm, RemoteAddr: c.RemoteAddr, RemotePort: c.RemotePort, Established: c.Established,
		}))
	}
	dir, segments, err := f.segments()
	if err != nil {
		return "", err
	}
	if err := f.compare(Play(set, dir, segments)); err != nil {
		return "", err
	}
	if err := f.compare(Play(set, dir, singleBytes(segments))); err != nil {
		return "", fmt.Errorf("byte by byte: %w", err)
	}
	return KindPayload, nil
}

func (f *fixture) segments() (flow.Direction, []string, error) {
	dir := flow.Out
	if f.Direction == "in" || len(f.In) > 0 {
		dir = flow.In
	}
	switch {
	case len(f.Out) > 0 && len(f.In) > 0:
		return 0, nil, errors.New("out and in are two fixtures")
	case f.Base64 != "":
		b, err := base64.StdEncoding.DecodeString(f.Base64)
		return dir, []string{string(b)}, err
	case len(f.Out)+len(f.In) == 0:
		return 0, nil, errors.New("has no event")
	}
	return dir, append(f.Out, f.In...), nil
}

func (f *fixture) compare(got []string) error {
	want := slices.Sorted(slices.Values(f.Expect))
	if !slices.Equal(got, want) {
		return fmt.Errorf("matched %q, want %q", got, want)
	}
	return nil
}

func singleBytes(segments []string) []string {
	var out []string
	for _, b := range []byte(strings.Join(segments, "")) {
		out = append(out, string([]byte{b}))
	}
	return out
}

func matchNames(set *Set, ev Event) []string {
	var names []string
	for _, m := range set.Match(ev, nil) {
		names = append(names, m.Rule.Name())
	}
	return names
}

// Play sends segments in one direction of a TCP flow through a reassembler and
// gives the names of the rules that matched on the way, sorted.
func Play(set *Set, dir flow.Direction, segments []string) []string {
	table := flow.NewTable(flow.Limits{})
	key := flow.Key{
		NetID: 1, Protocol: flow.TCP,
		Local:  netip.MustParseAddrPort("100.96.0.2:40000"),
		Remote: netip.MustParseAddrPort("198.51.100.7:443"),
	}
	const isn = 0xffffff00 // so that the numbers wrap
	var names []string
	seq := uint32(isn)
	for _, s := range segments {
		p, grown := table.Add(flow.Segment{Key: key, Direction: dir, Seq: seq, ISN: isn, HasISN: true, Data: []byte(s)})
		seq += uint32(len(s))
		if !grown {
			continue
		}
		for _, m := range set.Judge(p) {
			names = append(names, m.Rule.Name())
		}
	}
	slices.Sort(names)
	return names
}

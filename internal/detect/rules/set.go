package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"hearth/internal/detect/flow"
	"hearth/internal/env"
)

// Set is a checked collection of rules. It never changes and is safe for
// concurrent use.
type Set struct {
	rules  []*Rule // all, by name
	byKind map[Kind][]*Rule
}

// Match is a rule that holds of an event.
type Match struct {
	Rule   *Rule
	Detail string
}

// maxFile bounds a rule or fixture file.
const maxFile = 1 << 20

// Load reads the layers in order: a rule of a later layer replaces the one of
// the same name. Each layer must pass its own fixtures. All faults found are
// joined; they wrap env.ErrInvalid.
func Load(layers ...fs.FS) (*Set, error) {
	merged := map[string]*Rule{}
	var errs []error
	for i, layer := range layers {
		set, err := loadLayer(layer)
		if err != nil {
			errs = append(errs, fmt.Errorf("rule layer %d: %w", i, err))
			continue
		}
		for _, r := range set.rules {
			merged[r.Name()] = r
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return newSet(merged), nil
}

func newSet(rules map[string]*Rule) *Set {
	s := &Set{byKind: map[Kind][]*Rule{}}
	for _, r := range rules {
		s.rules = append(s.rules, r)
	}
	slices.SortFunc(s.rules, func(a, b *Rule) int { return strings.Compare(a.Name(), b.Name()) })
	for _, r := range s.rules {
		if !r.Disabled {
			s.byKind[r.Event] = append(s.byKind[r.Event], r)
		}
	}
	return s
}

// Rules lists the rules by name; the caller must not change the slice.
func (s *Set) Rules() []*Rule { return s.rules }

// Match asks every rule of the event's kind that is not in skip.
func (s *Set) Match(ev Event, skip []string) []Match {
	candidates := s.byKind[ev.Kind()]
	if len(candidates) == 0 {
		return nil
	}
	vars := map[string]any{string(ev.Kind()): ev}
	var out []Match
	for _, r := range candidates {
		if !slices.Contains(skip, r.Name()) && r.match(vars) {
			out = append(out, Match{Rule: r, Detail: r.describe(vars)})
		}
	}
	return out
}

// Judge asks every rule that has not matched this stream before, and notes in
// p.Seen what need not be asked again.
func (s *Set) Judge(p flow.Prefix) []Match {
	ev := &Payload{
		judged:    p.Seen.Messages,
		Direction: p.Direction.String(), Protocol: p.Key.Protocol.String(), Data: p.Data,
		RemoteAddr: p.Key.Remote.Addr().String(), RemotePort: int(p.Key.Remote.Port()),
		Segments: p.Segments, Conflict: p.Conflict,
	}
	found := s.Match(ev, p.Seen.Rules)
	for _, m := range found {
		p.Seen.Rules = append(p.Seen.Rules, m.Rule.Name())
	}
	p.Seen.Times++
	p.Seen.Messages = ev.Settled()
	return found
}

// loadLayer compiles one directory and proves it with its fixtures.
func loadLayer(layer fs.FS) (*Set, error) {
	envs, err := environments()
	if err != nil {
		return nil, fmt.Errorf("declare expressions: %w", err)
	}
	names, err := ruleFiles(layer)
	if err != nil {
		return nil, err
	}
	rules := map[string]*Rule{}
	var fixtures []fixture
	var errs []error
	for _, name := range names {
		if strings.HasSuffix(name, ".fixtures.yaml") {
			var f fixtureFile
			errs = append(errs, decode(layer, name, &f, &f.Version))
			fixtures = append(fixtures, f.Fixtures...)
			continue
		}
		var f file
		errs = append(errs, decode(layer, name, &f, &f.Version))
		for _, spec := range f.Rules {
			r, err := spec.compile(envs)
			if err == nil && rules[r.Name()] != nil {
				err = fmt.Errorf("%w: rule %q is there twice", env.ErrInvalid, r.Name())
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			rules[r.Name()] = r
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := prove(rules, fixtures); err != nil {
		return nil, err
	}
	return newSet(rules), nil
}

// ruleFiles lists a layer's files; other names are left alone, so that an
// editor's or a volume's own do not matter. A layer that is missing is an error.
func ruleFiles(layer fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(layer, ".")
	if err != nil {
		return nil, fmt.Errorf("%w: list rules: %w", env.ErrInvalid, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".yaml") && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// decode reads a file strictly: unknown and repeated keys are errors.
func decode(layer fs.FS, name string, into any, version *int) error {
	info, err := fs.Stat(layer, name)
	if err != nil {
		return err
	}
	if info.Size() > maxFile {
		return fmt.Errorf("%w: %s is larger than %d bytes", env.ErrInvalid, name, maxFile)
	}
	text, err := fs.ReadFile(layer, name)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		return fmt.Errorf("%w: %s: %w", env.ErrInvalid, name, err)
	}
	if *version != Version {
		return fmt.Errorf("%w: %s: version %d is not %d", env.ErrInvalid, name, *version, Version)
	}
	return nil
}

package kube

import (
	"cmp"
	"slices"
	"time"

	"hearth/internal/env"
)

// How long answers hold.
const (
	allowFor = 30 * time.Second
	denyFor  = 5 * time.Second
	// staleFor is how long an allowance is served while the API server does not
	// answer.
	staleFor = 10 * time.Minute
	// renewAfter is from when on an allowance in use is asked for again in the
	// background, inUse how long after its last use it counts as such.
	renewAfter = 15 * time.Second
	inUse      = 5 * time.Minute
	// silentFor is how long after a failure the API server counts as silent.
	silentFor = 5 * time.Second
	maxAccess = 10_000
)

// question is whether an account may do verb to a tenant's environments.
type question struct {
	who          env.ServiceAccount
	verb, tenant string
}

// answer is what the API server last said.
type answer struct {
	allowed bool
	reason  string // of a denial
	at      time.Time
	used    time.Time
}

// ruling is what the answers say of a question.
type ruling int

const (
	ask ruling = iota // nothing that holds
	allow
	deny
)

// accessCache keeps answers. It is pure: the caller brings the time and locks.
type accessCache struct {
	answers map[question]*answer
	failed  time.Time // the last question without an answer; zero since the last answer
}

func newAccessCache() *accessCache { return &accessCache{answers: map[question]*answer{}} }

// look says what is known at now, and notes the use.
func (c *accessCache) look(q question, now time.Time) (ruling, string) {
	a := c.answers[q]
	if a == nil {
		return ask, ""
	}
	a.used = now
	switch age := now.Sub(a.at); {
	case a.allowed && age < allowFor:
		return allow, ""
	case !a.allowed && age < denyFor:
		return deny, a.reason
	default:
		return ask, ""
	}
}

// stale reports whether an earlier allowance stands in for an answer.
func (c *accessCache) stale(q question, now time.Time) bool {
	a := c.answers[q]
	return a != nil && a.allowed && now.Sub(a.at) < staleFor
}

// silent reports whether the API server did not answer a moment ago.
func (c *accessCache) silent(now time.Time) bool {
	return !c.failed.IsZero() && now.Sub(c.failed) < silentFor
}

// failure notes a question without an answer.
func (c *accessCache) failure(now time.Time) { c.failed = now }

// put notes an answer.
func (c *accessCache) put(q question, allowed bool, reason string, now time.Time) {
	c.failed = time.Time{}
	if a := c.answers[q]; a != nil {
		a.allowed, a.reason, a.at = allowed, reason, now
		return
	}
	if len(c.answers) >= maxAccess {
		c.prune(now)
	}
	if len(c.answers) >= maxAccess {
		c.dropOldest()
	}
	c.answers[q] = &answer{allowed: allowed, reason: reason, at: now, used: now}
}

// prune forgets what says nothing any more.
func (c *accessCache) prune(now time.Time) {
	for q, a := range c.answers {
		if age := now.Sub(a.at); a.allowed && age >= staleFor || !a.allowed && age >= denyFor {
			delete(c.answers, q)
		}
	}
}

// dropOldest makes room for a tenth: denials before allowances, since anybody can
// ask for what is denied, and of these what was not used for the longest time.
func (c *accessCache) dropOldest() {
	type kept struct {
		question
		*answer
	}
	all := make([]kept, 0, len(c.answers))
	for q, a := range c.answers {
		all = append(all, kept{q, a})
	}
	slices.SortFunc(all, func(a, b kept) int {
		switch {
		case a.allowed == b.allowed:
			return a.used.Compare(b.used)
		case b.allowed:
			return -1
		default:
			return 1
		}
	})
	for _, k := range all[:len(all)/10] {
		delete(c.answers, k.question)
	}
}

// due lists at most n allowances in use to ask for again, the oldest first.
func (c *accessCache) due(now time.Time, n int) []question {
	var out []question
	for q, a := range c.answers {
		if a.allowed && now.Sub(a.at) >= renewAfter && now.Sub(a.used) < inUse {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, func(x, y question) int {
		return cmp.Compare(c.answers[x].at.UnixNano(), c.answers[y].at.UnixNano())
	})
	return out[:min(len(out), n)]
}

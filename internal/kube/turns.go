package kube

import "sync"

// turns bound how many objects of one tenant are worked on at once.
type turns struct {
	most int

	mu      sync.Mutex // guards tenants
	tenants map[string]*tenantTurns
}

type tenantTurns struct {
	taken   int
	waiting map[item]struct{}
}

func newTurns(most int) turns { return turns{most: most, tenants: map[string]*tenantTurns{}} }

// take takes a turn for the object, or notes that it waits for one.
func (t *turns) take(it item) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	its := t.tenants[it.namespace]
	if its == nil {
		its = &tenantTurns{waiting: map[item]struct{}{}}
		t.tenants[it.namespace] = its
	}
	if its.taken >= t.most {
		its.waiting[it] = struct{}{}
		return false
	}
	delete(its.waiting, it)
	its.taken++
	return true
}

// give ends a turn, and says which object of the tenant waits for one. Should another
// one be faster, it waits again: a turn is taken then that will be given, too.
func (t *turns) give(tenant string) (next item, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	its := t.tenants[tenant]
	its.taken--
	for next = range its.waiting {
		delete(its.waiting, next)
		ok = true
		break
	}
	if its.taken == 0 && len(its.waiting) == 0 {
		delete(t.tenants, tenant)
	}
	return next, ok
}

package warm

import (
	"errors"
	"sync"
	"testing"
	"time"

	"hearth/internal/env"
)

func TestAQuietNodeLetsNothingInUntilItIsReopened(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(2))
	fillPools(t, n)
	e := b.claim(n, Claim{Class: "demo"})
	if err := n.Quiesce(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]func() error{
		"claim":   func() error { _, err := n.Claim(t.Context(), Claim{Class: "demo"}); return err },
		"pause":   func() error { _, err := n.Pause(t.Context(), e.ID); return err },
		"release": func() error { _, err := n.Release(t.Context(), e.ID, 0, false); return err },
		"token":   func() error { _, err := n.Token(t.Context(), e.ID); return err },
		"classes": func() error { return n.SetClasses(t.Context(), nil) },
		"again":   func() error { return n.Quiesce(t.Context(), time.Second) },
	} {
		if err := op(); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("%s = %v, want ErrUnavailable", name, err)
		}
	}
	if wait, err := n.step(t.Context()); err != nil || wait == 0 {
		t.Errorf("step = %s, %v", wait, err)
	}
	if got := n.Pools()[0]; got.Ready != 1 {
		t.Errorf("the pool was refilled: %+v", got)
	}
	n.Reopen()
	fillPools(t, n)
	if got := n.Pools()[0]; got.Ready != 2 {
		t.Errorf("pool = %+v", got)
	}
	b.claim(n, Claim{Class: "demo"})
}

func TestQuiesceWaitsForOperationsAndEndsThoseThatDoNotEnd(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(1))
	fillPools(t, n)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.world.failWith(func(call string) error {
		if call == "identity" {
			once.Do(func() { close(entered) })
			<-leave
		}
		return nil
	})
	claimed := make(chan error, 1)
	go func() {
		_, err := n.Claim(t.Context(), Claim{Class: "demo"})
		claimed <- err
	}()
	<-entered
	if err := n.Quiesce(t.Context(), 10*time.Millisecond); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("quiesce beside a claim that hangs = %v", err)
	}
	quiet := make(chan error, 1)
	go func() { quiet <- n.Quiesce(t.Context(), time.Minute) }()
	time.Sleep(10 * time.Millisecond)
	close(leave)
	if err := <-quiet; err != nil {
		t.Errorf("quiesce = %v", err)
	}
	// It was told to end by the first quiesce, so whether it succeeded is its own.
	if err := <-claimed; err != nil && !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("claim = %v", err)
	}
	n.Reopen()
}

func TestAHurriedOperationSaysWhy(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	n := b.open(demoClass(0))
	e := b.claim(n, Claim{Class: "demo"})
	_, done, err := n.hold(t.Context(), e.ID) // another operation that does not end
	if err != nil {
		t.Fatal(err)
	}
	paused := make(chan error, 1)
	go func() {
		_, err := n.Pause(t.Context(), e.ID)
		paused <- err
	}()
	for n.underWay() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := n.Quiesce(t.Context(), 20*time.Millisecond); err != nil {
		t.Errorf("quiesce = %v: the waiting operation was to end", err)
	}
	if err := <-paused; !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("pause = %v, want ErrUnavailable", err)
	}
	done()
	n.Reopen()
}

func (n *Node) underWay() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gate.operations
}

func TestKeysOfTheControllerAreKeptWithTheEnvironment(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := demoClass(0)
	class.Ephemeral = true
	n := b.open(class)
	c := Claim{Class: "demo", Key: "k", ClaimKey: []byte{1, 2}, ClaimRequest: []byte{3}}
	e := b.claim(n, c)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = b.open(demoClass(0)) // the class is not ephemeral any more; the environment is
	got, err := n.Get(e.ID)
	if err != nil || !got.Ephemeral || string(got.ClaimKey) != "\x01\x02" || string(got.ClaimRequest) != "\x03" {
		t.Errorf("environment = %+v, %v", got, err)
	}
	c.ClaimKey, c.ClaimRequest = nil, nil // they ask for nothing
	if again := b.claim(n, c); again.ID != e.ID {
		t.Errorf("a repeated key got %s, want %s", again.ID, e.ID)
	}
	c.Key, c.ClaimKey = "other", make([]byte, maxClaimDigest+1)
	if _, err := n.Claim(t.Context(), c); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a long claim key = %v, want ErrInvalid", err)
	}
}

func TestCloseDoesNotWaitForAnInitThatHangs(t *testing.T) {
	requireChown(t)
	b := newBench(t)
	class := demoClass(0)
	class.Services = []env.Service{{Name: "late", Command: []string{"late"}, Start: env.StartAfterClaim}}
	n := b.open(class)
	b.world.hang = true // Claimed of the guest, until its context ends
	a, err := n.Claim(t.Context(), Claim{Class: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took < closePatience || took > 4*closePatience {
		t.Errorf("close took %s", took)
	}
	b.world.hang = false
	n = b.open(class)
	if got, err := n.Get(a.Environment.ID); err != nil || got.Phase != env.PhaseRunning {
		t.Errorf("environment = %+v, %v", got, err)
	}
}

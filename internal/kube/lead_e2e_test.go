//go:build e2e

package kube

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"hearth/internal/env"
)

const testLease = "test-leader"

func candidate(name string) Candidate {
	return Candidate{
		Namespace: testNamespace, Lease: testLease, Holder: name, Address: name + ":7400", CA: []byte("pem of " + name), Renew: 250 * time.Millisecond,
	}
}

func dropLease(t *testing.T, c *Client) {
	t.Helper()
	err := c.core.CoordinationV1().Leases(testNamespace).Delete(t.Context(), testLease, metav1.DeleteOptions{})
	if err != nil && !isNotFound(err) {
		t.Fatal(err)
	}
}

// leader is one candidate that runs.
type leader struct {
	leads  chan *Leadership // gets one when it leads
	cancel context.CancelFunc
	end    chan error
}

func run(t *testing.T, c *Client, me Candidate) *leader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &leader{leads: make(chan *Leadership, 1), cancel: cancel, end: make(chan error, 1)}
	go func() {
		l.end <- c.Lead(ctx, testLog(t), me, func(ctx context.Context, s *Leadership) error {
			l.leads <- s
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(cancel)
	return l
}

func (l *leader) wait(t *testing.T, d time.Duration) *Leadership {
	t.Helper()
	select {
	case s := <-l.leads:
		return s
	case err := <-l.end:
		t.Fatalf("ended: %v", err)
	case <-time.After(d):
		t.Fatal("does not lead")
	}
	return nil
}

func TestOneLeadsAndTheOtherTakesOver(t *testing.T) {
	c := testClient(t)
	dropLease(t, c)
	a := run(t, c, candidate("a"))
	a.wait(t, 5*time.Second)
	b := run(t, c, candidate("b"))
	select {
	case <-b.leads:
		t.Fatal("two lead")
	case <-time.After(3 * time.Second): // longer than the lease lives
	}
	lease, err := c.core.CoordinationV1().Leases(testNamespace).Get(t.Context(), testLease, metav1.GetOptions{})
	if err != nil || lease.Annotations[AnnotationAddress] != "a:7400" || lease.Annotations[AnnotationCA] != "pem of a" {
		t.Errorf("lease = %v, %v", lease, err)
	}
	begun := time.Now()
	a.cancel()
	if err := <-a.end; err != nil {
		t.Errorf("an orderly end: %v", err)
	}
	b.wait(t, time.Second)
	t.Logf("took over after %s", time.Since(begun))
}

func TestASilentLeaderLosesAndSeesIt(t *testing.T) {
	c := testClient(t)
	dropLease(t, c)
	var mu sync.Mutex // guards cut
	cut := false
	mine, err := openWith(testConfig(), func(rc *rest.Config) {
		rc.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if cut {
					return nil, errors.New("no route to host")
				}
				return next.RoundTrip(r)
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	a := run(t, mine, candidate("a"))
	led := a.wait(t, 5*time.Second)
	mu.Lock()
	cut = true
	mu.Unlock()
	select {
	case err := <-a.end:
		t.Fatalf("it ended though nobody else leads: %v", err)
	case <-time.After(2500 * time.Millisecond): // longer than the lease lives
	}
	if led.Lost() {
		t.Error("lost, though no other leader was seen")
	}
	b := run(t, c, candidate("b"))
	b.wait(t, 6*time.Second)
	mu.Lock()
	cut = false
	mu.Unlock()
	select {
	case err := <-a.end:
		if !errors.Is(err, env.ErrSuperseded) || !led.Lost() {
			t.Errorf("error = %v, lost = %v", err, led.Lost())
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on beside another leader")
	}
}

func TestOnlyTheLeadersPodHasTheLabel(t *testing.T) {
	c := testClient(t)
	dropLease(t, c)
	pods := c.core.CoreV1().Pods(testNamespace)
	for _, name := range []string{"pod-a", "pod-b"} {
		_ = pods.Delete(t.Context(), name, metav1.DeleteOptions{})
		if _, err := pods.Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{leaderLabel: "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	labelled := func() string {
		list, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: leaderLabel + "=true"})
		if err != nil {
			t.Fatal(err)
		}
		names := ""
		for _, p := range list.Items {
			names += p.Name + " "
		}
		return names
	}
	me := candidate("a")
	me.Pod = "pod-a"
	a := run(t, c, me)
	led := a.wait(t, 5*time.Second)
	led.Serving()
	eventually(t, "pod-a alone has it", func() bool { return labelled() == "pod-a " })
	a.cancel()
	<-a.end
	if got := labelled(); got != "" {
		t.Errorf("after the end %s has it", got)
	}
}

func TestOfTwoMakersOfTheAuthorityOneWins(t *testing.T) {
	c := testClient(t)
	wipe(t, c)
	a := c.NewAuthority(testNamespace)
	if _, err := a.ReadFile("ca.key", 100); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("before: %v", err)
	}
	errs := make([]error, 4)
	var makers sync.WaitGroup
	for i := range errs {
		makers.Go(func() { errs[i] = a.WriteNew("", "ca.key", []byte{byte('0' + i)}, 0o600) })
	}
	makers.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, env.ErrExists):
			t.Errorf("maker %d: %v", i, err)
		}
	}
	if b, err := a.ReadFile("ca.key", 100); err != nil || won < 0 || string(b) != string(rune('0'+won)) {
		t.Errorf("maker %d won, and the key is %q, %v", won, b, err)
	}
	if err := a.WriteNew("", "ca.pem", []byte("pem"), 0o644); err != nil {
		t.Errorf("another file: %v", err)
	}
	for range 2 {
		if err := c.PublishCA(t.Context(), []byte("pem"), testNamespace); err != nil {
			t.Fatal(err)
		}
	}
	m, err := c.core.CoreV1().ConfigMaps(testNamespace).Get(t.Context(), authorityName, metav1.GetOptions{})
	if err != nil || m.Data[caKey] != "pem" {
		t.Errorf("configmap = %v, %v", m, err)
	}
}

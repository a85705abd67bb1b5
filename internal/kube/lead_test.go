package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"hearth/internal/env"
)

func TestALeaderIsSureForTheLifeOfItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := fake.NewClientset()
		var cut atomic.Bool
		api.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			if cut.Load() {
				return true, nil, errors.New("connection refused")
			}
			return false, nil, nil
		})
		c := &Client{core: api}
		if err := c.mayWrite(); err != nil {
			t.Errorf("of a client by which nobody leads: %v", err)
		}
		me := Candidate{Namespace: "system", Lease: "lease", Holder: "me"}
		ctx, cancel := context.WithCancel(t.Context())
		err := c.Lead(ctx, slog.New(slog.DiscardHandler), me, func(_ context.Context, l *Leadership) error {
			time.Sleep(time.Minute)
			if err := c.mayWrite(); err != nil || !l.Sure() {
				t.Errorf("while it renews: %v", err)
			}
			cut.Store(true)
			time.Sleep(me.life() - me.renew() - time.Millisecond)
			if err := c.mayWrite(); err != nil {
				t.Errorf("while the lease lives: %v", err)
			}
			time.Sleep(me.renew() + 2*time.Millisecond)
			if err := c.mayWrite(); !errors.Is(err, env.ErrUnavailable) || l.Lost() {
				t.Errorf("when another may have it: %v, lost %v", err, l.Lost())
			}
			time.Sleep(time.Minute)
			cut.Store(false)
			time.Sleep(me.renew() + time.Millisecond)
			if err := c.mayWrite(); err != nil {
				t.Errorf("after it has renewed again: %v", err)
			}
			cancel()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if err := c.mayWrite(); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("after the lease was given back: %v", err)
		}
	})
}

func TestALeaderThatSleptRaisesNoEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: secretName, ResourceVersion: "1"}})
		c := &Client{core: api}
		s := &Store{c: c, secret: secret{c: c, namespace: "system", name: secretName}}
		l := &Leadership{life: 12 * time.Second}
		now := time.Now()
		l.renewed.Store(&now)
		c.leadership.Store(l)
		first, err := s.NextEpoch()
		if err != nil {
			t.Fatal(err)
		}
		// It stands still between the lease and the epoch, and another one leads.
		slept := false
		api.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if !slept {
				slept = true
				time.Sleep(l.life + time.Second)
			}
			return false, nil, nil
		})
		if epoch, err := s.NextEpoch(); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("epoch %d after %d, %v", epoch, first, err)
		}
	})
}

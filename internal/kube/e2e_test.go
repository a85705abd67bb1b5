//go:build e2e

package kube

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

// The tests with this build tag need an API server that is theirs alone, since they
// delete every Environment: one with the CRDs of deploy/crds that KUBECONFIG leads
// to, or one that they start by the programs in HEARTH_CLUSTER_BIN.

const testNamespace = "hearth-kube-test"

func testClient(tb testing.TB) *Client {
	tb.Helper()
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		tb.Fatal("neither KUBECONFIG nor HEARTH_CLUSTER_BIN is set: run make test-kube")
	}
	c, err := Open(Config{Kubeconfig: path, UserAgent: "hearth-test"})
	if err != nil {
		tb.Fatal(err)
	}
	for _, ns := range []string{testNamespace, storetest.TenantA, storetest.TenantB} {
		_, err := c.core.CoreV1().Namespaces().Create(tb.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			tb.Fatal(err)
		}
	}
	// Pods need one, and an API server alone makes none.
	_, err = c.core.CoreV1().ServiceAccounts(testNamespace).Create(tb.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		tb.Fatal(err)
	}
	return c
}

func testLog(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// wipe deletes every Environment and class, and what a controller stores.
func wipe(tb testing.TB, c *Client) {
	tb.Helper()
	ctx := context.Background()
	list, err := c.environments("").List(ctx, metav1.ListOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range list.Items {
		remove(tb, c, refOf(&list.Items[i]))
	}
	classes, err := c.classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	for _, k := range classes.Items {
		if err := c.classes.Delete(ctx, k.Name, metav1.DeleteOptions{}); err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range []string{secretName, authorityName} {
		if err := c.core.CoreV1().Secrets(testNamespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !isNotFound(err) {
			tb.Fatal(err)
		}
	}
}

// remove makes an object vanish, finalizers or not.
func remove(tb testing.TB, c *Client, o ref) {
	tb.Helper()
	ctx := context.Background()
	_, err := c.environments(o.namespace).Patch(ctx, o.name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err == nil {
		err = c.environments(o.namespace).Delete(ctx, o.name, metav1.DeleteOptions{})
	}
	if err != nil && !isNotFound(err) {
		tb.Fatal(err)
	}
}

func openTestStore(tb testing.TB, c *Client) *Store {
	tb.Helper()
	return OpenStore(testLog(tb), c, StoreConfig{Namespace: testNamespace, Seal: testSeal}, NewStoreMetrics(prometheus.NewRegistry()))
}

func newEnvironment(tb testing.TB, c *Client, namespace, name, class string) *v1alpha1.Environment {
	tb.Helper()
	o := &v1alpha1.Environment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "user-", Name: name}, Spec: v1alpha1.EnvironmentSpec{Class: class}}
	o, err := c.environments(namespace).Create(tb.Context(), o, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func TestStoreKeepsTheContract(t *testing.T) {
	c := testClient(t)
	opened := map[*testing.T]bool{}
	storetest.Run(t, storetest.Options{
		Open: func(t *testing.T) fleet.Store {
			t.Helper()
			if !opened[t] {
				wipe(t, c)
				opened[t] = true
			}
			return openTestStore(t, c)
		},
		Crash: func(_ *testing.T, s fleet.Store) {
			st := s.(*Store)
			st.mu.Lock()
			st.cfg.Lost = func() bool { return true }
			st.mu.Unlock()
			st.behind.stop()
		},
		NoJoinTokens: true,
		NewObject: func(t *testing.T, tenant, class string) (object, uid string, id env.ID) {
			t.Helper()
			o := newEnvironment(t, c, tenant, "", class)
			return refOf(o).String(), string(o.UID), testSeal.idOf(o)
		},
		Gone: func(t *testing.T, object string) {
			t.Helper()
			ns, name, _ := strings.Cut(object, "/")
			remove(t, c, ref{namespace: ns, name: name})
		},
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 15 s: %s", what)
}

func testConfig() Config {
	return Config{Kubeconfig: os.Getenv("KUBECONFIG"), UserAgent: "hearth-test"}
}

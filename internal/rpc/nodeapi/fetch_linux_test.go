package nodeapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
	"hearth/internal/snapshot"
)

const (
	instance = "hearth"
	tenant   = "acme"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newCA(t *testing.T, of string) *pki.CA {
	t.Helper()
	dir, err := durable.OpenDir(filepath.Join(t.TempDir(), "ca"), nil)
	must(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	ca, err := pki.LoadOrCreateCA(dir, of, time.Now())
	must(t, err)
	return ca
}

func sourceOf(t *testing.T, ca *pki.CA, id pki.Identity) *pki.Source {
	t.Helper()
	c, err := ca.Credentials(id, []string{"127.0.0.1"}, time.Now())
	must(t, err)
	s, err := pki.NewSource(c)
	must(t, err)
	return s
}

// peer is one node's side of fetching: its store, and its API over TLS.
type peer struct {
	store   *snapshot.Store
	service *Service
	fetcher *Fetcher
	address string

	mu     sync.Mutex                                                      // guards export
	export func(ctx context.Context, id env.SnapshotID, w io.Writer) error // replaces the store's
}

func (p *peer) exports(f func(ctx context.Context, id env.SnapshotID, w io.Writer) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.export = f
}

func (p *peer) List(env.ID) ([]env.Snapshot, error) { return nil, nil }

func (p *peer) Export(ctx context.Context, id env.SnapshotID, w io.Writer) error {
	p.mu.Lock()
	export := p.export
	p.mu.Unlock()
	if export != nil {
		return export(ctx, id, w)
	}
	return p.store.Export(ctx, snapshot.ID(id), w)
}

func newPeer(t *testing.T, ca *pki.CA, name string, stall time.Duration) *peer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := snapshot.Open(snapshot.Config{Dir: filepath.Join(t.TempDir(), "store")}, nil, log)
	must(t, err)
	t.Cleanup(func() { _ = store.Close() })
	p := &peer{store: store}
	p.service = New(Info{Node: name, Instance: instance}, nil, p, nil, nil, nil)
	source := sourceOf(t, ca, pki.Node(instance, name))
	mux := http.NewServeMux()
	path, h := hearthv1connect.NewNodeServiceHandler(p.service,
		rpc.HandlerOptions(log, rpc.NewMetrics(prometheus.NewRegistry()), Gate(instance))...)
	mux.Handle(path, boundFetches(h, stall))
	server := rpc.NewServer(log, mux)
	l, err := rpc.ListenTLS("127.0.0.1:0", source)
	must(t, err)
	p.address = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		wg.Wait()
	})
	p.fetcher = NewFetcher(instance, name, func() *pki.Source { return source })
	p.fetcher.stall = stall
	return p
}

// capture stores a tree of about size bytes and returns the snapshot.
func (p *peer) capture(t *testing.T, tree string) env.SnapshotID {
	t.Helper()
	info, err := p.store.Capture(t.Context(), snapshot.Source{
		Lineage: "e-test", Tenant: tenant, Roots: []snapshot.Root{{Name: "upper", Path: tree}},
	}, nil)
	must(t, err)
	return env.SnapshotID(info.ID)
}

func (p *peer) fetch(ctx context.Context, id env.SnapshotID, from *peer, name string) error {
	return p.fetcher.Fetch(ctx, id, name, from.address, func(r io.Reader) error {
		_, err := p.store.Import(ctx, snapshot.ID(id), tenant, r)
		return err
	})
}

func tree(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*i>>7 ^ i>>13)
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), b, 0o644))
	return dir
}

func TestASnapshotGoesFromNodeToNode(t *testing.T) {
	ca := newCA(t, instance)
	a, b := newPeer(t, ca, "a", stallTime), newPeer(t, ca, "b", stallTime)
	dir := tree(t, 12<<20)
	id := a.capture(t, dir)
	if err := b.fetch(t.Context(), id, a, "a"); !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), "from node a (") || !strings.Contains(err.Error(), "to node b:") {
		t.Errorf("without a grant: %v", err)
	}
	a.service.grants.give("b", id, time.Now())
	must(t, b.fetch(t.Context(), id, a, "a"))
	if _, err := b.store.Verify(t.Context(), snapshot.ID(id)); err != nil {
		t.Error(err)
	}
	got := t.TempDir()
	_, err := b.store.Restore(t.Context(), snapshot.ID(id), map[string]string{"upper": got}, env.IDRange{})
	must(t, err)
	want, err := os.ReadFile(filepath.Join(dir, "file"))
	must(t, err)
	if have, err := os.ReadFile(filepath.Join(got, "file")); err != nil || !bytes.Equal(have, want) {
		t.Errorf("the file has changed on the way: %v", err)
	}
	must(t, b.fetch(t.Context(), id, a, "a")) // again is no error
}

func TestAGrantIsForOneNodeOneSnapshotAndAWhile(t *testing.T) {
	g, now := newGrants(), time.Now()
	g.give("b", "e-test/1", now)
	for what, allowed := range map[string]bool{
		"it":               g.allow("b", "e-test/1", now.Add(grantTime)),
		"another node":     !g.allow("c", "e-test/1", now),
		"another snapshot": !g.allow("b", "e-test/2", now),
		"too late":         !g.allow("b", "e-test/1", now.Add(grantTime+1)),
		"a restart":        !newGrants().allow("b", "e-test/1", now),
	} {
		if !allowed {
			t.Error(what)
		}
	}
	for i := range maxGrants + 10 {
		g.give(fmt.Sprintf("n%d", i), "e-test/1", now.Add(time.Duration(i)))
	}
	if len(g.until) > maxGrants || !g.allow(fmt.Sprintf("n%d", maxGrants+9), "e-test/1", now) {
		t.Errorf("%d grants", len(g.until))
	}
	for _, bad := range []string{"B", "../a", strings.Repeat("n", 300), "a b"} {
		if err := checkGrantee(instance, bad); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// The gate: a node may fetch and nothing else, a controller everything but fetch.
func TestOnlyNodesFetchAndTheyDoNothingElse(t *testing.T) {
	ca, foreign := newCA(t, instance), newCA(t, instance)
	a := newPeer(t, ca, "a", stallTime)
	id := a.capture(t, tree(t, 1000))
	a.service.grants.give("b", id, time.Now())
	a.service.grants.give("controller", id, time.Now())
	client := func(s *pki.Source) hearthv1connect.NodeServiceClient {
		h := rpc.TLSClient(s.ClientConfig(pki.Node(instance, "a")))
		t.Cleanup(h.CloseIdleConnections)
		return hearthv1connect.NewNodeServiceClient(h, "https://"+a.address, rpc.ClientOptions()...)
	}
	fetch := func(c hearthv1connect.NodeServiceClient) error {
		s, err := c.FetchSnapshot(t.Context(), &hearthv1.FetchSnapshotRequest{Snapshot: string(id)})
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	}
	node := client(sourceOf(t, ca, pki.Node(instance, "b")))
	must(t, fetch(node))
	if err := fetch(client(sourceOf(t, ca, pki.Node(instance, "c")))); !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), "to nobody of this name") {
		t.Errorf("another node: %v", err)
	}
	if err := fetch(client(sourceOf(t, ca, pki.Controller(instance)))); !errors.Is(err, env.ErrDenied) {
		t.Errorf("the controller: %v", err)
	}
	if err := fetch(client(sourceOf(t, foreign, pki.Node(instance, "b")))); err == nil {
		t.Error("a node of another authority was served")
	}
	pool, err := pki.CAClientConfig(ca.PEM(), pki.Node(instance, "a").ServerName())
	must(t, err)
	bare := rpc.TLSClient(pool)
	defer bare.CloseIdleConnections()
	if err := fetch(hearthv1connect.NewNodeServiceClient(bare, "https://"+a.address, rpc.ClientOptions()...)); !errors.Is(err, env.ErrDenied) {
		t.Errorf("without a certificate: %v", err)
	}

	calls := map[string]func(c hearthv1connect.NodeServiceClient) error{
		"ListSnapshots": func(c hearthv1connect.NodeServiceClient) error {
			_, err := c.ListSnapshots(t.Context(), &hearthv1.NodeListSnapshotsRequest{})
			return err
		},
		"Claim": func(c hearthv1connect.NodeServiceClient) error {
			_, err := c.Claim(t.Context(), &hearthv1.NodeClaimRequest{})
			return err
		},
		"Release": func(c hearthv1connect.NodeServiceClient) error {
			_, err := c.Release(t.Context(), &hearthv1.NodeReleaseRequest{})
			return err
		},
		"Inventory": func(c hearthv1connect.NodeServiceClient) error {
			_, err := c.Inventory(t.Context(), &hearthv1.InventoryRequest{})
			return err
		},
	}
	for name, call := range calls {
		if err := call(node); !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), "role controller") {
			t.Errorf("%s by a node: %v", name, err)
		}
	}
	must(t, calls["ListSnapshots"](client(sourceOf(t, ca, pki.Controller(instance)))))
}

// Root on the node's socket has no node's name, so nothing is granted to it.
func TestNobodyFetchesOverTheSocket(t *testing.T) {
	a := newPeer(t, newCA(t, instance), "a", stallTime)
	id := a.capture(t, tree(t, 1000))
	a.service.grants.give("", id, time.Now())
	err := a.service.FetchSnapshot(t.Context(), &hearthv1.FetchSnapshotRequest{Snapshot: string(id)}, nil)
	if !errors.Is(err, env.ErrDenied) {
		t.Errorf("error = %v", err)
	}
}

func TestALyingOrSilentSourceLeavesNothing(t *testing.T) {
	ca := newCA(t, instance)
	const stall = 500 * time.Millisecond
	a, b := newPeer(t, ca, "a", stallTime), newPeer(t, ca, "b", stallTime)
	id := a.capture(t, tree(t, 3<<20))
	var whole bytes.Buffer
	must(t, a.store.Export(t.Context(), snapshot.ID(id), &whole))
	a.service.grants.give("b", id, time.Now())
	half := whole.Bytes()[:whole.Len()/2]
	for name, c := range map[string]struct {
		export func(ctx context.Context, w io.Writer) error
		want   error
		says   string
	}{
		"goes silent": {func(ctx context.Context, w io.Writer) error {
			_, err := w.Write(half)
			<-ctx.Done()
			return err
		}, env.ErrUnavailable, "it sends nothing for 500ms"},
		"ends in the middle": {func(_ context.Context, w io.Writer) error {
			_, err := w.Write(half)
			return err
		}, env.ErrUnavailable, "breaks off"},
		"finds damage on the way": {func(_ context.Context, w io.Writer) error {
			_, err := w.Write(half)
			return errors.Join(fmt.Errorf("%w: pack p", env.ErrCorrupt), err)
		}, env.ErrCorrupt, "pack p"},
		"fails after the end": {func(_ context.Context, w io.Writer) error {
			_, err := w.Write(whole.Bytes())
			return errors.Join(fmt.Errorf("%w: pack p", env.ErrCorrupt), err)
		}, env.ErrCorrupt, "pack p"},
		"sends junk": {func(_ context.Context, w io.Writer) error {
			_, err := w.Write(bytes.Repeat([]byte("junk"), 1000))
			return err
		}, env.ErrCorrupt, "not a snapshot stream"},
		"sends junk and stays": {func(ctx context.Context, w io.Writer) error {
			_, err := w.Write(bytes.Repeat([]byte("junk"), 1<<20))
			<-ctx.Done() // the receiver does not wait for the rest
			return err
		}, env.ErrCorrupt, "not a snapshot stream"},
		"changes a byte": {func(_ context.Context, w io.Writer) error {
			bad := bytes.Clone(whole.Bytes())
			bad[len(bad)/3] ^= 1
			_, err := w.Write(bad)
			return err
		}, env.ErrCorrupt, "checksum"},
		"does not have it any more": {func(ctx context.Context, w io.Writer) error {
			return a.store.Export(ctx, "e-gone/1", w)
		}, env.ErrNotFound, "e-gone"},
	} {
		a.exports(func(ctx context.Context, _ env.SnapshotID, w io.Writer) error { return c.export(ctx, w) })
		b.fetcher.stall = stallTime
		if name == "goes silent" {
			b.fetcher.stall = stall
		}
		begun := time.Now()
		err := b.fetch(t.Context(), id, a, "a")
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "from node a") {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		if all, err := b.store.Lineages(); len(all) > 0 || err != nil {
			t.Errorf("%s: lineages %v, %v", name, all, err)
		}
	}
	a.exports(nil)
	must(t, b.fetch(t.Context(), id, a, "a"))
}

func TestAFetchEndsWithItsCaller(t *testing.T) {
	ca := newCA(t, instance)
	a, b := newPeer(t, ca, "a", stallTime), newPeer(t, ca, "b", stallTime)
	id := a.capture(t, tree(t, 1000))
	a.service.grants.give("b", id, time.Now())
	begun, ended := make(chan struct{}), make(chan struct{})
	a.exports(func(ctx context.Context, _ env.SnapshotID, _ io.Writer) error {
		defer close(ended)
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-begun
		cancel()
	}()
	if err := b.fetch(ctx, id, a, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	<-ended // the source notices
}

func TestAFetchFromTheWrongNodeIsRefused(t *testing.T) {
	ca := newCA(t, instance)
	a, b := newPeer(t, ca, "a", stallTime), newPeer(t, ca, "b", stallTime)
	id := a.capture(t, tree(t, 1000))
	a.service.grants.give("b", id, time.Now())
	if err := b.fetch(t.Context(), id, a, "c"); !errors.Is(err, env.ErrUnavailable) { // a's certificate is not c's
		t.Errorf("another node at the address: %v", err)
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, nobody.Close())
	for name, c := range map[string]struct {
		node, address string
		want          error
	}{
		"nobody there":      {"a", nobody.Addr().String(), env.ErrUnavailable},
		"no name":           {"", a.address, env.ErrInvalid},
		"no address":        {"a", "", env.ErrInvalid},
		"more than a place": {"a", "127.0.0.1:1/../..", env.ErrUnavailable},
	} {
		err := b.fetcher.Fetch(t.Context(), id, c.node, c.address, func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if !errors.Is(err, c.want) && !(name == "more than a place" && err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bare := NewFetcher(instance, "b", func() *pki.Source { return nil })
	if err := bare.Fetch(t.Context(), id, "a", a.address, nil); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestAReceiverThatTakesNothingIsCutOff(t *testing.T) {
	ca := newCA(t, instance)
	a, b := newPeer(t, ca, "a", 200*time.Millisecond), newPeer(t, ca, "b", stallTime)
	id := env.SnapshotID("e-test/1")
	a.service.grants.give("b", id, time.Now())
	ended := make(chan error, 1)
	a.exports(func(_ context.Context, _ env.SnapshotID, w io.Writer) error {
		b := make([]byte, 1<<20)
		for {
			if _, err := w.Write(b); err != nil {
				ended <- err
				return err
			}
		}
	})
	release := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- b.fetcher.Fetch(t.Context(), id, "a", a.address, func(io.Reader) error { <-release; return nil })
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("error = %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the source waits for ever")
	}
	close(release)
	<-done
}

func TestANodeSendsOnlySoManySnapshotsAtATime(t *testing.T) {
	ca := newCA(t, instance)
	a, b := newPeer(t, ca, "a", stallTime), newPeer(t, ca, "b", stallTime)
	id := env.SnapshotID("e-test/1")
	a.service.grants.give("b", id, time.Now())
	begun, release := make(chan struct{}, maxFetches), make(chan struct{})
	a.exports(func(context.Context, env.SnapshotID, io.Writer) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	var wg sync.WaitGroup
	for range maxFetches {
		wg.Go(func() { _ = b.fetch(context.Background(), id, a, "a") })
	}
	for range maxFetches {
		<-begun
	}
	if err := b.fetch(t.Context(), id, a, "a"); !errors.Is(err, env.ErrUnavailable) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("error = %v", err)
	}
	close(release)
	wg.Wait()
	if connect.CodeOf(rpc.Error(env.ErrUnavailable)) != connect.CodeUnavailable {
		t.Error("not to be tried again")
	}
}

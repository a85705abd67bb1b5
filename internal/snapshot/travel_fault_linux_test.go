package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// importWork imports two snapshots of one lineage into the store below dir; the
// second finds the lineage there.
func importWork(dir string, fault func(string) error) error {
	s, err := Open(Config{Dir: filepath.Join(dir, "store")}, fault, quiet())
	if err != nil {
		return err
	}
	for _, id := range []ID{"e-test/1", "e-test/2"} {
		f, err := os.Open(filepath.Join(dir, fmt.Sprintf("stream%s", strings.TrimPrefix(string(id), "e-test/"))))
		if err != nil {
			return err
		}
		if _, err := s.Import(context.Background(), id, acme, f); err != nil {
			return err
		}
		fmt.Println("ack", id)
	}
	return nil
}

func TestACrashAtAnyStepOfAnImportLeavesAllOfItOrNothing(t *testing.T) {
	a, tree := newStore(t), t.TempDir()
	var streams [][]byte
	for i := range 2 {
		write(t, filepath.Join(tree, "f"+strconv.Itoa(i)), random(uint64(i), 300_000))
		streams = append(streams, exported(t, a, capture1(t, a, acmeSource(tree), &recorder{}).ID))
	}
	run := func(kill int) (dir, out string) {
		dir = t.TempDir()
		for i, b := range streams {
			write(t, filepath.Join(dir, "stream"+strconv.Itoa(i+1)), b)
		}
		cmd := startAs("import", "SNAPSHOT_TEST_DIR="+dir, "SNAPSHOT_TEST_KILL="+strconv.Itoa(kill))
		b, err := cmd.Output()
		if kill == 0 {
			must(t, err)
		} else if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("kill at %d: %v", kill, err)
		}
		return dir, string(b)
	}
	_, out := run(0)
	steps := strings.Count(out, "step ")
	if steps < 40 || !strings.Contains(out, "owner:link") {
		t.Fatalf("only %d steps:\n%s", steps, out)
	}
	for kill := 1; kill <= steps; kill++ {
		dir, out := run(kill)
		checkTornImport(t, dir, out, streams)
	}
}

func checkTornImport(t *testing.T, dir, out string, streams [][]byte) {
	t.Helper()
	s, err := Open(Config{Dir: filepath.Join(dir, "store")}, nil, quiet())
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	defer s.Close()
	if _, err := s.Sweep(t.Context()); err != nil {
		t.Errorf("%s: %v", out, err)
	}
	seen := 0
	for i := range streams {
		id := MakeID("e-test", uint64(i+1))
		_, err := s.Get(id)
		acked := strings.Contains(out, "ack "+string(id))
		switch {
		case errors.Is(err, env.ErrNotFound) && !acked:
			continue
		case err != nil:
			t.Fatalf("%s: %v", out, err)
		}
		seen++
		if _, err := s.Verify(t.Context(), id); err != nil {
			t.Errorf("%s: %v", out, err)
		}
	}
	// Nothing is left that no snapshot covers.
	all, err := s.Lineages()
	must(t, err)
	if (len(all) > 0) != (seen > 0) {
		t.Errorf("%s: %d snapshots in lineages %v", out, seen, all)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "store/lin/*/packs/*"))
	must(t, err)
	if len(packs) != seen {
		t.Errorf("%s: %d snapshots in packs %v", out, seen, packs)
	}
	if temps, _ := filepath.Glob(filepath.Join(dir, "store/lin/*/*/.tmp-*")); len(temps) > 0 {
		t.Errorf("%s: left %v", out, temps)
	}
	for i, b := range streams {
		imported(t, s, MakeID("e-test", uint64(i+1)), b)
	}
}

func TestEveryFailingStepOfAnImportLeavesTheLineageAsItWas(t *testing.T) {
	a, tree := newStore(t), t.TempDir()
	var streams [][]byte
	for i := range 2 {
		write(t, filepath.Join(tree, "f"), random(uint64(i), 300_000))
		streams = append(streams, exported(t, a, capture1(t, a, acmeSource(tree), &recorder{}).ID))
	}
	fail, injected := "", errors.New("injected")
	s := openStore(t, filepath.Join(t.TempDir(), "store"), func(op string) error {
		if op == fail {
			return injected
		}
		return nil
	})
	snapshots := func() string {
		infos, err := s.List("e-test")
		if err != nil && !errors.Is(err, env.ErrNotFound) {
			t.Fatal(err)
		}
		var sb strings.Builder
		for _, i := range infos {
			fmt.Fprint(&sb, i.ID, " ")
		}
		return sb.String()
	}
	fds := openFDs(t)
	steps := []string{"lineage:mkdir", "lineage:syncdir", "owner:write", "owner:sync", "owner:link", "owner:syncdir", "pack:write", "pack:sync", "pack:rename", "pack:syncdir", "index:write", "index:sync", "index:rename", "index:syncdir", "cache:remove", "ref:write", "ref:sync", "ref:link"}
	for i, stream := range streams {
		id, before := MakeID("e-test", uint64(i+1)), snapshots()
		for _, step := range steps {
			if i > 0 && (strings.HasPrefix(step, "lineage") || strings.HasPrefix(step, "owner")) {
				continue
			}
			fail = step
			if _, err := s.Import(t.Context(), id, acme, bytes.NewReader(stream)); !errors.Is(err, injected) {
				t.Fatalf("%s of %s: %v", step, id, err)
			}
			fail = ""
			if got := snapshots(); got != before {
				t.Errorf("%s of %s: snapshots %s, before %s", step, id, got, before)
			}
		}
		imported(t, s, id, stream)
		if n, err := s.Sweep(t.Context()); n != 0 || err != nil {
			t.Errorf("%d remainders, %v", n, err)
		}
	}
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors leaked", now-fds)
	}
}

// endlessReader gives what it has and then waits.
type stalled struct {
	io.Reader
	until <-chan struct{}
	err   func() error
}

func (r stalled) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != io.EOF {
		return n, err
	}
	<-r.until
	return 0, r.err()
}

func TestAnImportThatIsGivenUpLeavesNothingAndHoldsNobodyUp(t *testing.T) {
	a, b, tree := newStore(t), newStore(t), t.TempDir()
	write(t, filepath.Join(tree, "f"), random(1, 3<<20))
	info := capture1(t, a, acmeSource(tree), &recorder{})
	stream := exported(t, a, info.ID)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		half := stalled{bytes.NewReader(stream[:len(stream)-100]), ctx.Done(), ctx.Err}
		_, err := b.Import(ctx, info.ID, acme, half)
		done <- err
	}()
	for { // the lineage is being made, and nobody sees it
		if all, err := b.Lineages(); err != nil || len(all) > 0 {
			break
		}
	}
	if _, err := b.Get(info.ID); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("Get = %v", err)
	}
	other := acmeSource(tree)
	other.Lineage = "e-other"
	capture1(t, b, other, &recorder{})
	waiting, stop := context.WithCancel(t.Context())
	stop()
	if _, err := b.Capture(waiting, acmeSource(tree), &recorder{}); err == nil {
		t.Error("captured a lineage that is being imported")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if all, err := b.Lineages(); len(all) != 1 || err != nil {
		t.Errorf("lineages = %v, %v", all, err)
	}
	imported(t, b, info.ID, stream)
}

func TestADeletedLineageEndsItsExport(t *testing.T) {
	s, tree := newStore(t), t.TempDir()
	for i := range 200 {
		write(t, filepath.Join(tree, fmt.Sprint(i)), random(uint64(i), 20_000))
	}
	info := capture1(t, s, acmeSource(tree), &recorder{})
	n := 0
	err := s.Export(t.Context(), info.ID, writerFunc(func(p []byte) (int, error) {
		if n++; n == 20 { // a capture goes on beside it, and so does a deletion
			capture1(t, s, acmeSource(tree), &recorder{})
			must(t, s.Delete("e-test"))
		}
		return len(p), nil
	}))
	if err != nil && !errors.Is(err, env.ErrNotFound) {
		t.Errorf("error = %v", err)
	}
	broken := errors.New("broken pipe")
	capture1(t, s, acmeSource(tree), &recorder{})
	if err := s.Export(t.Context(), info.ID, writerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("error = %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestASweepRemovesWhatNothingCovers(t *testing.T) {
	s, tree := newStore(t), t.TempDir()
	write(t, filepath.Join(tree, "f"), random(1, 100_000))
	info := capture1(t, s, acmeSource(tree), &recorder{})
	want := describe(t, s.lin.Path())
	lin, err := s.openLineage("e-test")
	must(t, err)
	must(t, lin.packs.WriteFile("x", packName(2, packExt), []byte("torn"), 0o600))
	must(t, lin.idx.WriteFile("x", packName(2, indexExt), []byte("torn"), 0o600))
	must(t, lin.pins.WriteFile("x", "e-never", nil, 0o600))
	write(t, filepath.Join(lin.refs.Path(), ".tmp-1"), []byte("torn"))
	write(t, filepath.Join(s.lin.Path(), "e-torn/packs/x"), []byte("torn")) // no refs yet
	write(t, filepath.Join(s.lin.Path(), "e-torn2/borrow"), []byte("{}"))
	must(t, os.Mkdir(filepath.Join(s.lin.Path(), "e-torn2/refs"), 0o700))
	lin.close()
	if n, err := s.Sweep(t.Context()); n != 6 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	got := describe(t, s.lin.Path())
	for _, m := range []map[string]string{got, want} {
		for name, line := range m {
			if strings.HasPrefix(line, "4") { // times of directories have moved
				m[name] = "directory"
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Verify(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
}

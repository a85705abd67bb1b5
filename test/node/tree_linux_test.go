package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// While a tree is copied and captured, directories in it become links to the host's
// and back: nothing of the host is read, and nothing written.
func TestNodeDirectoriesThatBecomeLinksLeadNowhere(t *testing.T) {
	a := node(t)
	bait, out := a.Path("bait"), t.TempDir()
	ok(t, os.MkdirAll(bait, 0o755))
	t.Cleanup(func() { ok(t, os.RemoveAll(bait)) })
	ok(t, os.WriteFile(filepath.Join(bait, "file"), []byte("of the host"), 0o644))
	c := a.claim(t, "bare")
	_, err := a.Hearthctl.Sh(c, `mkdir -p /workspace/t/real /workspace/t/a /opt/t/real; echo inside > /workspace/t/real/file; cp -r /workspace/t/real /opt/t
cat > /swap <<'END'
while :; do
  for t in /workspace/t /opt/t; do
    cd $t; mv real d 2>/dev/null; mv d real 2>/dev/null; ln -s `+bait+` d; mv -T d a/l 2>/dev/null; rm -f d a/l
    ln -s /proc/1/root/`+bait+` d; rm -f d; ln -s /proc/self/cwd d; rm -f d
  done
done
END
for i in 1 2; do setsid sh /swap >/dev/null 2>&1 & done`)
	ok(t, err)
	g := guest(t, c, c.ID(), c.Access.Token)
	source := filepath.Join(out, "source")
	ok(t, os.MkdirAll(filepath.Join(source, "d"), 0o755))
	ok(t, os.WriteFile(filepath.Join(source, "d/file"), []byte("brought"), 0o644))
	copies, failures := 0, 0
	did := func(err error) {
		copies++
		if err != nil { // what is copied may be gone when it is its turn
			failures++
		}
	}
	for range either(6, 200) {
		did(second(a.Hearthctl.Run("cp", c.ID()+":/workspace/t", filepath.Join(out, "copy")))) // over what is there
		did(second(a.Hearthctl.Run("cp", filepath.Join(source, "d"), c.ID()+":/workspace/t/d")))
		for _, path := range []string{"/workspace/t/d/file", "/opt/t/d/file"} {
			r, err := g.ReadFile(within(t), &hearthv1.ReadFileRequest{Path: path})
			ok(t, err)
			var got bytes.Buffer
			for r.Receive() {
				got.Write(r.Msg().GetData())
			}
			did(errors.Join(r.Err(), r.Close()))
			if bytes.Contains(got.Bytes(), []byte("host")) {
				t.Fatalf("%s reads %q", path, &got)
			}
		}
	}
	if copies == failures {
		t.Errorf("all %d copies failed: nothing was shown", copies)
	}
	for range either(3, 20) {
		forked, err := a.Node.Fork(t.Context(), &hearthv1.NodeForkRequest{Environment: c.ID(), Children: []*hearthv1.NodeClaimRequest{{}}})
		if err != nil {
			t.Log("fork:", err) // it may give up on what changes all the time
			continue
		}
		child := claimed(forked.GetChildren()[0])
		if got := a.says(t, child, "cat /workspace/t/*/file /opt/t/*/file; true"); strings.Contains(got, "host") {
			t.Errorf("a snapshot has of the host: %q", got)
		}
		a.release(t, child)
	}
	for _, dir := range []string{bait, filepath.Join(out, "copy")} {
		ok(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if host := strings.Contains(string(b), "host"); err == nil && host != (dir == bait) {
				t.Errorf("%s has %q", path, b)
			}
			return err
		}))
	}
	if left, err := os.ReadDir(bait); err != nil || len(left) != 1 {
		t.Errorf("in the host's directory are %v: %v", left, err)
	}
	a.alive(t, c)
	a.release(t, c)
}

// Directories deeper than the agent may have descriptors, names of every byte, links
// of forty megabytes: they are listed by the page, captured or refused by name, and
// gone with their environment.
func TestNodeMonstrousTreesAreListedRefusedAndReleased(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "web"), a.claim(t, "bare")
	run := a.intrude(t, c)
	must := func(args ...string) {
		t.Helper()
		if _, stderr, code := run(args...); code != 0 {
			t.Fatalf("intruder %v: exit %d: %s", args, code, stderr)
		}
	}
	levels, names := either(3_000, 30_000), either(5_000, 50_000)
	if !long() { // or it takes more directories, and time
		a.fewDescriptors(t, 2_000)
	}
	memory := a.watch(t)
	must("many", fmt.Sprint(names), "/workspace/many")
	g := guest(t, c, c.ID(), c.Access.Token)
	begun, pages, got := time.Now(), 0, 0
	for token, more := "", true; more; pages++ {
		page, err := g.ListDir(within(t), &hearthv1.ListDirRequest{Path: "/workspace/many", PageToken: token})
		ok(t, err)
		got += len(page.GetEntries())
		token = page.GetNextPageToken()
		more = token != ""
	}
	t.Logf("%d names in %d pages, %d ms", got, pages, time.Since(begun).Milliseconds())
	if got != names || pages < names/500 {
		t.Errorf("%d of %d names in %d pages", got, names, pages)
	}
	begun = time.Now()
	t.Logf("so far the agent had %d MiB at most", memory.sofar()/mib)
	ok(t, second(a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})))
	t.Logf("captured in %d ms; %d MiB at most", time.Since(begun).Milliseconds(), memory.sofar()/mib)
	must("deep", fmt.Sprint(levels), "/workspace/deep")
	must("deep", fmt.Sprint(levels), "/opt/deep")
	if long() {
		must("tiny", "300000", "/workspace/tiny")
		must("tiny", "300000", "/opt/tiny")
	}
	_, err := a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})
	fails(t, err, env.ErrExhausted, c.ID(), "deep")
	if said := fmt.Sprint(err); len(said) > 4096 {
		t.Errorf("the error has %d bytes", len(said))
	}
	if _, err := g.ListDir(within(t), &hearthv1.ListDirRequest{Path: "/workspace/deep" + strings.Repeat("/"+strings.Repeat("d", 200), 30)}); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("a path longer than one may be: %v", err)
	}
	t.Logf("refused as too deep; %d MiB at most", memory.sofar()/mib)
	a.alive(t, c)
	// While it is removed the node goes on.
	released, begun := make(chan error, 1), time.Now()
	go func() {
		_, err := a.Node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: c.ID()})
		released <- err
	}()
	worst := time.Duration(0)
	for done := false; !done; {
		select {
		case err := <-released:
			if err != nil {
				t.Log("release:", err) // it goes on by itself
			}
			done = true
		default:
			one := time.Now()
			cold := a.claim(t, "bare")
			worst = max(worst, time.Since(one))
			a.release(t, cold)
		}
	}
	t.Logf("%d levels, twice: released in %d ms; a cold claim meanwhile took at most %d ms", levels, time.Since(begun).Milliseconds(), worst.Milliseconds())
	a.forget(c.ID(), c.Environment.Slot)
	eventually(t, 2*time.Minute, func() error {
		if dirs := a.slotDirsOf(c.Environment.Slot); len(dirs) > 0 {
			return fmt.Errorf("left: %v", dirs)
		}
		return nil
	})
	memory.grewAtMost(t, int64(either(96, 512))*mib)
	a.alive(t, neighbour)
	a.release(t, neighbour)
}

// fewDescriptors lets the agent and its containerd have only so many until the test
// ends.
func (a *agent) fewDescriptors(t *testing.T, most uint64) {
	t.Helper()
	agent, err := a.PID("agent")
	ok(t, err)
	for _, pid := range []int{agent, a.containerdPID(t)} {
		var was unix.Rlimit
		ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was))
		ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: was.Max}, nil))
		t.Cleanup(func() { ok(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil)) })
	}
}

// slotDirsOf are directories and cgroups with the slot's name.
func (a *agent) slotDirsOf(slot string) (out []string) {
	for _, parent := range append(a.CgroupRoots(), a.Path("state/slots")) {
		found, _ := filepath.Glob(filepath.Join(parent, slot))
		out = append(out, found...)
	}
	return out
}

package warm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

const nodesFile = "of the node, for environments"

// read is an error unless the node's directory is there, with the slot's ids.
func (p *prankster) read() error {
	for _, dir := range []string{"data/deep", "behind"} {
		b, err := os.ReadFile(filepath.Join(dir, "seed"))
		var place, file unix.Stat_t
		if err := errors.Join(err, unix.Stat(dir, &place), unix.Lstat(filepath.Join(dir, "seed"), &file)); err != nil {
			return err
		}
		if string(b) != nodesFile || place.Uid != 0 || file.Uid != 0 || file.Gid != 7 {
			return fmt.Errorf("%s is %d's, its file %d:%d's: %q", dir, place.Uid, file.Uid, file.Gid, b)
		}
	}
	return nil
}

// nodesDirectory has a file that another group of the node owns.
func nodesDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed")
	if err := errors.Join(os.WriteFile(seed, []byte(nodesFile), 0o640), os.Chown(seed, 0, 7)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func bind(t *testing.T, dir, at string, readOnly bool) Bind {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Bind{Dir: f, Name: "shared", Path: at, ReadOnly: readOnly}
}

// A directory of the node is there with the slot's ids, where the image's links
// lead, and nothing of this process is changed by it.
func TestKernelADirectoryOfTheNodeIsMountedWithTheSlotsIds(t *testing.T) {
	s := startHostileSlot(t)
	if err := s.init.OpenIdentity(env.IDRange{Base: slotIDBase, Size: 65536}); err != nil {
		t.Fatal(err)
	}
	inside := fmt.Sprintf("/proc/%d/root", s.cmd.Process.Pid)
	if err := os.Symlink("/aside", filepath.Join(inside, "by-link")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(inside, "aside/behind"), 0o755), os.Symlink("/aside/behind", filepath.Join(inside, "behind"))); err != nil {
		t.Fatal(err)
	}
	dir := nodesDirectory(t)
	err := s.init.Mount([]Bind{bind(t, dir, "/data/deep", false), bind(t, dir, "/by-link/behind", true)})
	if err != nil {
		t.Fatal(err)
	}
	s.play("read")
	s.play("write refused")
	s.play("write")
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "mine"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("written by the slot's root: %d:%d, %v", st.Uid, st.Gid, err)
	}
	if _, err := os.Stat("/data/deep"); err == nil {
		t.Error("the mount point is on the node")
	}
	for _, at := range []string{"/secret-path", "/secret-path/below"} {
		if err := s.init.Mount([]Bind{bind(t, dir, at, false)}); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("on %s, a file: %v", at, err)
		}
	}
	allThreadsAtHome(t)
}

// allThreadsAtHome fails the test if a thread has another mount namespace, root or
// working directory than the others.
func allThreadsAtHome(t *testing.T) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"ns/mnt", "ns/uts", "root", "cwd"} {
		home, err := os.Readlink(filepath.Join("/proc/thread-self", what))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			at, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), what))
			if err == nil && at != home { // one that has ended has none
				t.Errorf("%s of thread %s is %s, not %s", what, task.Name(), at, home)
			}
		}
	}
}

func TestKernelNothingIsMountedIntoASlotThatHasEnded(t *testing.T) {
	s := startHostileSlot(t)
	if err := s.init.OpenIdentity(env.IDRange{Base: slotIDBase, Size: 65536}); err != nil {
		t.Fatal(err)
	}
	s.end()
	if err := s.init.Mount([]Bind{bind(t, nodesDirectory(t), "/data", false)}); err == nil {
		t.Error("mounted")
	}
}

// What environments may have written below a directory leads nowhere else.
func TestADirectoryForAMountIsOpenedOverNoLink(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
		os.Symlink(outside, filepath.Join(dir, "out")),
		os.Symlink("a", filepath.Join(dir, "in")),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root := MountRoot{Path: dir}
	for name, want := range map[string]error{
		"": nil, "a": nil, "a/b": nil,
		"out": env.ErrInvalid, "in/b": env.ErrInvalid, "file": env.ErrInvalid, "none": env.ErrNotFound,
	} {
		f, err := openMount(root, "", env.Mount{Name: "shared", Directory: name, Path: "/data"})
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
	if _, err := openMount(MountRoot{Path: filepath.Join(dir, "none")}, "", env.Mount{}); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("a root that is not there: %v", err)
	}
}

func TestEachTenantHasADirectoryOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	root := MountRoot{Path: dir, Writable: true, PerTenant: true}
	for range 2 { // made once
		f, err := openMount(root, "acme", env.Mount{Name: "homes", Path: "/home"})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if st, err := os.Stat(filepath.Join(dir, "acme")); err != nil || !st.IsDir() {
		t.Errorf("directory of the tenant: %v", err)
	}
}

// A setuid program that root inside leaves must not be one for the node's users.
func TestADirectoryThatOthersReachIsNotWrittenTo(t *testing.T) {
	kerneltest.Require(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openMount(MountRoot{Path: dir, Writable: true}, "", env.Mount{}); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("writable and open to all: %v", err)
	}
	f, err := openMount(MountRoot{Path: dir}, "", env.Mount{})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// A thread that cannot come back from a slot ends: no later work of this process may
// run among the slot's files.
func TestKernelAThreadThatDoesNotFindBackEnds(t *testing.T) {
	s := startHostileSlot(t)
	if err := s.init.OpenIdentity(env.IDRange{Base: slotIDBase, Size: 65536}); err != nil {
		t.Fatal(err)
	}
	noDirectory, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer noDirectory.Close()
	whole := s.init.identity.home
	lost := *whole
	lost.root = noDirectory
	s.init.identity.home = &lost
	dir := nodesDirectory(t)
	err = s.init.Mount([]Bind{bind(t, dir, "/data/deep", true)})
	s.init.identity.home = whole
	if !errors.Is(err, errAbroad) {
		t.Fatalf("error = %v, want %v", err, errAbroad)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		abroad := threadsAbroad(t)
		if len(abroad) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads in another mount namespace: %v", abroad)
		}
	}
	if err := s.init.Mount([]Bind{bind(t, dir, "/data/again", true)}); err != nil {
		t.Errorf("the next mount: %v", err)
	}
}

// threadsAbroad are those of this process that are in another mount namespace. The
// main thread does not count: Go has it sleep for ever instead of ending it.
func threadsAbroad(t *testing.T) (abroad []string) {
	t.Helper()
	home, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads = %v: %v", threads, err)
	}
	for _, thread := range threads {
		at, err := os.Readlink(filepath.Join(thread, "ns/mnt"))
		if err == nil && at != home && filepath.Base(thread) != strconv.Itoa(os.Getpid()) {
			abroad = append(abroad, thread)
		}
	}
	return abroad
}

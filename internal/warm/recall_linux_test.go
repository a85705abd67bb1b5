package warm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

const (
	recallLimit = 64 << 10
	recallFile  = "run/hearth/" + EnvJSONFile
	hostSecret  = "of the host, and of nobody inside"
	slotIDBase  = 1_500_000_000
)

// TestMain lets the test binary play the hostile root of a slot.
func TestMain(m *testing.M) {
	if os.Getenv("WARM_TEST_ROLE") == "slot" {
		if err := playSlot(os.Getenv("WARM_TEST_ROOT"), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// playSlot is the first process of a slot: it enters its root, mounts the tmpfs
// of the identity files, and does what it is told, a trick a line.
func playSlot(root string, in io.Reader, out io.Writer) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make root a mount: %w", err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(root, "run/hearth"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := errors.Join(unix.Chdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	secret, err := os.ReadFile("secret-path")
	if err != nil {
		return err
	}
	p := &prankster{secret: string(secret)}
	fmt.Fprintln(out, "ready")
	for s := bufio.NewScanner(in); s.Scan(); {
		if err := p.play(s.Text()); err != nil {
			fmt.Fprintln(out, err)
		} else {
			fmt.Fprintln(out, "ok")
		}
	}
	return nil
}

// prankster replaces an identity file.
type prankster struct {
	secret string // a file on the host
	held   []int
	stop   atomic.Bool
	ended  chan struct{} // closed when what plays on has stopped; nil if nothing does
}

func (p *prankster) play(trick string) error {
	do, ok := map[string]func() error{
		"clean": p.clean,
		"file":  func() error { return os.WriteFile(recallFile, []byte("mine"), 0) },
		"most":  func() error { return os.WriteFile(recallFile, make([]byte, recallLimit), 0o600) },
		"more":  func() error { return os.WriteFile(recallFile, make([]byte, recallLimit+1), 0o600) },
		"huge": func() error {
			return errors.Join(os.WriteFile(recallFile, nil, 0o600), os.Truncate(recallFile, 1<<40))
		},
		"fifo":       func() error { return unix.Mkfifo(recallFile, 0o600) },
		"directory":  func() error { return os.Mkdir(recallFile, 0o700) },
		"socket":     p.socket,
		"lease":      p.lease,
		"link":       func() error { return os.Symlink(p.secret, recallFile) },
		"climb":      func() error { return os.Symlink(strings.Repeat("../", 40)+p.secret, recallFile) },
		"link above": func() error { return errors.Join(os.Rename("run", "aside"), os.Symlink(filepath.Dir(p.secret), "run")) },
		"device": func() error {
			return errors.Join(os.Rename("run", "aside"), os.MkdirAll("run/hearth", 0o700), os.Rename("zero", recallFile))
		},
		"look":  p.look,
		"read":  p.read,
		"write": func() error { return os.WriteFile("data/deep/mine", []byte("inside"), 0o600) },
		"write refused": func() error {
			if err := os.WriteFile("behind/mine", nil, 0o600); !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("written to what is read-only: %v", err)
			}
			return nil
		},
		"grow": func() error { p.playOn(p.grow); return nil },
		"swap": func() error { p.playOn(p.swap); return nil },
	}[trick]
	if !ok {
		return fmt.Errorf("no trick %q", trick)
	}
	return do()
}

func (p *prankster) clean() error {
	if p.ended != nil {
		p.stop.Store(true)
		<-p.ended
		p.stop.Store(false)
		p.ended = nil
	}
	for _, fd := range p.held {
		unix.Close(fd)
	}
	p.held = nil
	if _, err := os.Lstat("aside"); err == nil {
		if st, err := os.Lstat(recallFile); err == nil && st.Mode()&os.ModeDevice != 0 {
			_ = os.Rename(recallFile, "zero")
		}
		if err := errors.Join(os.RemoveAll("run"), os.Rename("aside", "run")); err != nil {
			return err
		}
	}
	all, err := os.ReadDir("run/hearth")
	for _, e := range all {
		err = errors.Join(err, os.RemoveAll(filepath.Join("run/hearth", e.Name())))
	}
	return err
}

func (p *prankster) socket() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p.held = append(p.held, fd)
	return errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: recallFile}), unix.Listen(fd, 1))
}

// lease has every opening of the file wait for this process.
func (p *prankster) lease() error {
	fd, err := unix.Open(recallFile, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	p.held = append(p.held, fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	return err
}

func (p *prankster) playOn(round func()) {
	ended := make(chan struct{})
	p.ended = ended
	go func() {
		defer close(ended)
		for !p.stop.Load() {
			round()
		}
	}()
}

// grow appends to the file until there is no room, and begins anew.
func (p *prankster) grow() {
	f, err := os.OpenFile(recallFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	for piece := make([]byte, 512); err == nil && !p.stop.Load(); {
		_, err = f.Write(piece)
	}
}

// swap puts one thing after another into the file's place.
func (p *prankster) swap() {
	const next = "run/hearth/next"
	for _, make := range []func() error{
		func() error { return os.WriteFile(next, []byte("mine"), 0o600) },
		func() error { return unix.Mkfifo(next, 0o600) },
		func() error { return os.Symlink(p.secret, next) },
		func() error { return os.WriteFile(next, nil, 0) },
	} {
		if make() == nil {
			_ = os.Rename(next, recallFile)
		}
	}
}

// hostileSlot is a slot whose root is the prankster.
type hostileSlot struct {
	t    *testing.T
	init *process
	cmd  *exec.Cmd
	in   io.Writer
	out  *bufio.Reader
}

func startHostileSlot(t *testing.T) *hostileSlot {
	t.Helper()
	kerneltest.Require(t, kerneltest.UserNS())
	if _, err := homeOf(); err != nil { // which the process keeps
		t.Fatal(err)
	}
	kerneltest.NoLeaks(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	outside, err := os.MkdirTemp("", "recall-*") // t.TempDir lies where the slot's ids may not search
	must(err)
	t.Cleanup(func() { _ = os.RemoveAll(outside) })
	must(os.Chmod(outside, 0o755))
	secret := filepath.Join(outside, "host/hearth", EnvJSONFile)
	must(os.MkdirAll(filepath.Dir(secret), 0o755))
	must(os.WriteFile(secret, []byte(hostSecret), 0o644))
	root := filepath.Join(outside, "root")
	must(os.MkdirAll(filepath.Join(root, "run/hearth"), 0o755))
	must(os.WriteFile(filepath.Join(root, "secret-path"), []byte(secret), 0o644))
	must(unix.Mknod(filepath.Join(root, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) // an image may bring one
	must(filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, slotIDBase, slotIDBase))
	}))
	s := &hostileSlot{t: t}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: slotIDBase, Size: 65536}}
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Env = append(os.Environ(), "WARM_TEST_ROLE=slot", "WARM_TEST_ROOT="+root)
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	s.in, err = s.cmd.StdinPipe()
	must(err)
	out, err := s.cmd.StdoutPipe()
	must(err)
	s.out = bufio.NewReader(out)
	must(s.cmd.Start())
	t.Cleanup(s.end)
	s.expect("ready")
	i, err := LinuxInits{}.Open(s.cmd.Process.Pid)
	must(err)
	t.Cleanup(i.Close)
	s.init = i.(*process)
	return s
}

func (s *hostileSlot) expect(want string) {
	s.t.Helper()
	line, err := s.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != want {
		s.t.Fatalf("inside: %q, %v", line, err)
	}
}

func (s *hostileSlot) play(trick string) {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, trick); err != nil {
		s.t.Fatal(err)
	}
	s.expect("ok")
}

func (s *hostileSlot) end() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// recall fails the test if it takes long or much.
func (s *hostileSlot) recall() ([]byte, error) {
	s.t.Helper()
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		b, err := s.init.Recall(EnvJSONFile, recallLimit)
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 16*recallLimit {
			s.t.Errorf("Recall allocated %d bytes", took)
		}
		if len(r.b) > recallLimit || r.err != nil && r.b != nil {
			s.t.Errorf("Recall = %d bytes, %v", len(r.b), r.err)
		}
		if bytes.Contains(r.b, []byte(hostSecret)) {
			s.t.Error("Recall read a file of the host")
		}
		return r.b, r.err
	case <-time.After(10 * time.Second):
		s.t.Fatal("Recall waits")
		return nil, nil
	}
}

// opened is true if f opens what is in the file's place. To look at it is not
// to open it.
func (s *hostileSlot) opened(f func()) bool {
	s.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unix.Close(fd)
	path := fmt.Sprintf("/proc/%d/root/%s", s.cmd.Process.Pid, recallFile)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN|unix.IN_DONT_FOLLOW); err != nil {
		s.t.Fatal(err)
	}
	f()
	n, _ := unix.Read(fd, make([]byte, 4096))
	return n > 0
}

func TestKernelRecallReadsWhatRootInsideLeft(t *testing.T) {
	s := startHostileSlot(t)
	if _, err := s.recall(); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	s.play("file")
	var b []byte
	var err error
	if !s.opened(func() { b, err = s.recall() }) {
		t.Error("a file is not seen to be opened: the other tests say nothing")
	}
	if string(b) != "mine" || err != nil {
		t.Errorf("Recall = %q, %v", b, err)
	}
	s.play("clean")
	s.play("most")
	if b, err := s.recall(); len(b) != recallLimit || err != nil {
		t.Errorf("Recall = %d bytes, %v", len(b), err)
	}
	s.end()
	if _, err := s.recall(); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("of a slot that has ended: %v", err)
	}
}

func TestKernelRecallOpensNothingButAFile(t *testing.T) {
	s := startHostileSlot(t)
	for _, trick := range []string{"fifo", "directory", "socket", "device"} {
		s.play(trick)
		var err error
		if s.opened(func() { _, err = s.recall() }) {
			t.Errorf("%s: was opened", trick)
		}
		if !errors.Is(err, env.ErrNotFound) {
			t.Errorf("%s: %v", trick, err)
		}
		s.play("clean")
	}
}

func TestKernelRecallRefusesWhatIsTooLongOrElsewhere(t *testing.T) {
	s := startHostileSlot(t)
	for _, trick := range []string{"more", "huge", "link", "climb", "link above"} {
		s.play(trick)
		if b, err := s.recall(); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("%s: %d bytes, %v", trick, len(b), err)
		}
		s.play("clean")
	}
}

func TestKernelRecallDoesNotWaitForALease(t *testing.T) {
	s := startHostileSlot(t)
	s.play("lease")
	start := time.Now()
	if b, err := s.recall(); !errors.Is(err, env.ErrUnavailable) || time.Since(start) > 2*time.Second {
		t.Errorf("Recall = %q, %v after %s", b, err, time.Since(start))
	}
}

func TestKernelRecallBoundsAFileThatGrows(t *testing.T) {
	s := startHostileSlot(t)
	s.play("grow")
	read, refused := 0, 0
	for deadline := time.Now().Add(20 * time.Second); (read == 0 || refused == 0 || read+refused < 200) && time.Now().Before(deadline); {
		if _, err := s.recall(); err == nil {
			read++
		} else if errors.Is(err, env.ErrNotFound) {
			refused++
		} else {
			t.Fatal(err)
		}
	}
	if read == 0 || refused == 0 {
		t.Errorf("read %d times, refused %d times", read, refused)
	}
	s.play("clean")
}

func TestKernelRecallOfAFileThatIsSwappedIsItOrNothing(t *testing.T) {
	s := startHostileSlot(t)
	s.play("swap")
	seen := map[string]int{}
	for deadline := time.Now().Add(20 * time.Second); (len(seen) < 3 || seen["mine"] < 20) && time.Now().Before(deadline); {
		b, err := s.recall()
		switch {
		case errors.Is(err, env.ErrNotFound):
			seen["nothing"]++
		case err != nil || len(b) > 0 && string(b) != "mine":
			t.Fatalf("Recall = %q, %v", b, err)
		default:
			seen[string(b)]++
		}
	}
	if len(seen) < 3 {
		t.Errorf("seen %v", seen)
	}
	s.play("clean")
}

package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// deepTree makes directories below each other in dir, each with a file and a link
// beside the next.
func deepTree(t *testing.T, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range levels {
		must(t, unix.Symlinkat("/etc", fd, "link"))
		file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		must(t, err)
		must(t, unix.Close(file))
		name := fmt.Sprintf("%d-%s", i%10, strings.Repeat("n", 200)) // a path of these is no path any more
		must(t, unix.Mkdirat(fd, name, 0o700))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

// fewDescriptors lowers how many descriptors this process may have.
func fewDescriptors(t *testing.T, most uint64) {
	t.Helper()
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: was.Max}))
	t.Cleanup(func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) })
}

func TestATreeDeeperThanThereAreDescriptorsIsRemoved(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "tree")
	must(t, os.Mkdir(root, 0o700))
	outside := filepath.Join(dir, "outside")
	must(t, os.WriteFile(outside, []byte("kept"), 0o600))
	deepTree(t, root, 3000)
	fewDescriptors(t, 256)
	must(t, RemoveAll(t.Context(), root))
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is there: %v", err)
	}
	if b, err := os.ReadFile(outside); string(b) != "kept" || err != nil {
		t.Errorf("beside it: %q, %v", b, err)
	}
}

func TestRemovalTakesWhateverTheNameIs(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	must(t, os.Mkdir(kept, 0o700))
	must(t, os.WriteFile(filepath.Join(kept, "file"), nil, 0o600))
	for name, make := range map[string]func(path string) error{
		"file":     func(path string) error { return os.WriteFile(path, nil, 0o400) },
		"fifo":     func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":     func(path string) error { return os.Symlink(kept, path) },
		"dangling": func(path string) error { return os.Symlink("nowhere", path) },
		"empty":    func(path string) error { return os.Mkdir(path, 0o700) },
		"nothing":  func(string) error { return nil },
		"wide": func(path string) error {
			err := os.Mkdir(path, 0o700)
			for i := 0; err == nil && i < 3000; i++ {
				err = os.Symlink(kept, filepath.Join(path, fmt.Sprintf("%d-%s", i, strings.Repeat("w", 200))))
			}
			return err
		},
		"name\xff\nof bytes": func(path string) error { return os.MkdirAll(filepath.Join(path, "\xfe/-rf/ "), 0o700) },
	} {
		path := filepath.Join(dir, name)
		must(t, make(path))
		if err := RemoveAll(t.Context(), path+"/"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is there: %v", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(kept, "file")); err != nil {
		t.Error("a link was followed:", err)
	}
}

func TestARemovalThatIsCutShortGoesOnWhereItWas(t *testing.T) {
	root := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(root, 0o700))
	deepTree(t, root, 200)
	over, end := context.WithCancelCause(t.Context())
	why := errors.New("too long")
	end(why)
	if err := RemoveAll(over, root); !errors.Is(err, why) || !strings.Contains(err.Error(), root) {
		t.Errorf("%v, want %v", err, why)
	}
	must(t, RemoveAll(t.Context(), root))
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is there: %v", err)
	}
}

// What is mounted in the tree is somebody else's.
func TestKernelARemovalDoesNotEnterAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	other, at := filepath.Join(dir, "other"), filepath.Join(dir, "tree/a/b")
	must(t, os.MkdirAll(at, 0o700))
	must(t, os.Mkdir(other, 0o700))
	must(t, os.WriteFile(filepath.Join(other, "file"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "tree/file"), nil, 0o600))
	must(t, unix.Mount(other, at, "", unix.MS_BIND, ""))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	err := RemoveAll(t.Context(), filepath.Join(dir, "tree"))
	if err == nil || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("a mount in the tree: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(other, "file")); err != nil {
		t.Error("what was mounted is touched:", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "tree/file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was not mounted is there: %v", err)
	}
	must(t, unix.Unmount(at, 0))
	mounted = false
	must(t, RemoveAll(t.Context(), filepath.Join(dir, "tree")))
}

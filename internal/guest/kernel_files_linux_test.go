package guest_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/guest/guesttest"
)

func TestKernelFilesRoundTripWhateverTheirNames(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, time.Minute)
	names := []string{"plain", " ", "-rf", "a\nb", "\xff\xfe", "ünïcödé", `back\x41slash`, strings.Repeat("n", 255)}
	for i, name := range names {
		content := bytes.Repeat([]byte{byte(i), 0xff}, 100_000*i)
		o := guest.WriteOptions{Path: "/workspace/new/dir/" + name, Mode: 0o640, UID: 1000, GID: 1001, Parents: true}
		n, err := m.Client.WriteFile(ctx, o, bytes.NewReader(content))
		if err != nil || n != int64(len(content)) {
			t.Fatalf("write %q: %d, %v", name, n, err)
		}
		f, err := m.Client.ReadFile(ctx, o.Path, 0, 0)
		if err != nil {
			t.Fatalf("read %q: %v", name, err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("read %q: %d bytes of %d, %v", name, len(got), len(content), err)
		}
		want := guest.FileInfo{Name: name, Size: int64(len(content)), Mode: syscall.S_IFREG | 0o640, UID: 1000, GID: 1001, Modified: f.Info.Modified}
		if diff := cmp.Diff(want, f.Info); diff != "" {
			t.Error(diff)
		}
	}
	page, err := m.Client.ListDir(ctx, "/workspace/new/dir", "", 0)
	if err != nil || page.More || len(page.Entries) != len(names) {
		t.Errorf("list: %d entries of %d, more=%v, %v", len(page.Entries), len(names), page.More, err)
	}
	if st, err := m.Client.Stat(ctx, "/workspace/new"); err != nil || st.UID != 1000 || st.Mode != syscall.S_IFDIR|0o755 {
		t.Errorf("made directory: %+v, %v", st, err)
	}
}

func TestKernelReadTakesAPartAndRefusesWhatIsNoFile(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, 30*time.Second)
	sh(t, m, "mkfifo /tmp/fifo; echo 0123456789 > /tmp/ten; ln -s ten /tmp/link")
	f, err := m.Client.ReadFile(ctx, "/tmp/link", 3, 4)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	f.Close()
	if string(got) != "3456" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	for path, want := range map[string]error{
		"/tmp/fifo": env.ErrInvalid, "/dev/ptmx": env.ErrInvalid, "/tmp": env.ErrInvalid, "/none": env.ErrNotFound,
		"relative": env.ErrInvalid, "/a\x00b": env.ErrInvalid,
	} {
		if _, err := m.Client.ReadFile(ctx, path, 0, 0); !errors.Is(err, want) {
			t.Errorf("read %q: %v, want %v", path, err, want)
		}
	}
	if st, err := m.Client.Stat(ctx, "/tmp/link"); err != nil || st.Target != "ten" {
		t.Errorf("stat of a link: %+v, %v", st, err)
	}
}

func TestKernelListPagesThroughALargeDirectory(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, time.Minute)
	sh(t, m, "mkdir /tmp/many; cd /tmp/many; awk 'BEGIN{for(i=1;i<=12500;i++)printf \"f%05d\\n\",i}' | xargs touch")
	var names []string
	for after, more := "", true; more; {
		page, err := m.Client.ListDir(ctx, "/tmp/many", after, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			names = append(names, e.Name)
		}
		after, more = names[len(names)-1], page.More
	}
	if len(names) != 12500 || names[0] != "f00001" || names[12499] != "f12500" {
		t.Errorf("%d names from %q to %q", len(names), names[0], names[len(names)-1])
	}
}

func TestKernelWriteReplacesALinkAndSurvivesASwappedDirectory(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, time.Minute)
	sh(t, m, "mkdir /tmp/a /tmp/b; echo secret > /tmp/victim; ln -s /tmp/victim /tmp/a/file")
	put := func(path string) error {
		_, err := m.Client.WriteFile(ctx, guest.WriteOptions{Path: path}, strings.NewReader("new"))
		return err
	}
	if err := put("/tmp/a/file"); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, m, "cat /tmp/victim; cat /tmp/a/file; test -L /tmp/a/file || echo plain"); got != "secret\nnewplain" {
		t.Errorf("after a write over a link: %q", got)
	}
	p, err := begin(t, m, guest.Command{Args: []string{"sh", "-c", "cd /tmp; while true; do mv a c; ln -s /tmp/b a; rm a; mv c a; done"}})
	if err != nil {
		t.Fatal(err)
	}
	done := 0
	for range 200 {
		if put("/tmp/a/raced") == nil {
			done++
		}
	}
	_ = p.Signal(syscall.SIGKILL)
	p.Close()
	if done == 0 {
		t.Error("no write succeeded")
	}
	if left := sh(t, m, "find /tmp -name '.hearth-*'"); left != "" {
		t.Errorf("temporary files are left: %s", left)
	}
}

func TestKernelWriteThatIsCutShortChangesNothing(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, 30*time.Second)
	sh(t, m, "echo old > /tmp/f")
	broken := io.MultiReader(strings.NewReader("half"), failing{})
	if _, err := m.Client.WriteFile(ctx, guest.WriteOptions{Path: "/tmp/f"}, broken); !errors.Is(err, errBroken) {
		t.Errorf("write says %v", err)
	}
	eventually(t, "no temporary file is left", func() bool { return sh(t, m, "ls -A /tmp") == "f" })
	if got := sh(t, m, "cat /tmp/f"); got != "old" {
		t.Errorf("file holds %q", got)
	}
}

var errBroken = errors.New("broken source")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

func TestKernelWriteToAFullDiskSaysSo(t *testing.T) {
	m := guesttest.Start(t)
	_, err := m.Client.WriteFile(within(t, 30*time.Second), guest.WriteOptions{Path: "/run/hearth/big"}, bytes.NewReader(make([]byte, 8<<20)))
	if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("write of 8 MiB to a tmpfs of 1 MiB: %v", err)
	}
	if left := sh(t, m, "ls -A /run/hearth"); left != "" {
		t.Errorf("left behind: %q", left)
	}
}

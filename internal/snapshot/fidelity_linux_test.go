package snapshot

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices, mounts")
	}
}

// nastyTree makes one of everything that an unprivileged user may make.
func nastyTree(t testing.TB, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "empty"), nil)
	write(t, filepath.Join(dir, "exact"), random(1, chunkMax))
	write(t, filepath.Join(dir, "big"), random(2, 5<<20+7))
	write(t, filepath.Join(dir, "db"), append([]byte(sqliteMagic), random(3, 1<<20)...))
	write(t, filepath.Join(dir, "not utf8 \xff\xfe\n"), []byte("n"))
	write(t, filepath.Join(dir, strings.Repeat("n", 255)), []byte("l"))
	write(t, filepath.Join(dir, "d/first"), []byte("linked"))
	must(t, os.Link(filepath.Join(dir, "d/first"), filepath.Join(dir, "d/second")))
	must(t, os.MkdirAll(filepath.Join(dir, "z/y"), 0o755))
	must(t, os.Link(filepath.Join(dir, "d/first"), filepath.Join(dir, "z/y/third")))
	must(t, os.Symlink(strings.Repeat("x", 4095), filepath.Join(dir, "longlink")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "abs")))
	must(t, os.Link(filepath.Join(dir, "abs"), filepath.Join(dir, "abs2")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	for _, off := range []int64{1 << 20, 16 << 20} {
		_, err = sparse.WriteAt(random(uint64(off), 10_000), off)
		must(t, err)
	}
	must(t, sparse.Truncate(40<<20))
	must(t, sparse.Close())
	must(t, os.Chmod(filepath.Join(dir, "exact"), 0o4711|os.ModeSetuid))
	must(t, unix.Setxattr(filepath.Join(dir, "exact"), "user.note", []byte("v\x00\xff"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "d"), "user.empty", nil, 0))
	must(t, os.Mkdir(filepath.Join(dir, "closed"), 0o300))
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0o1300|os.ModeSticky))
	old := time.Unix(1, 123456789)
	must(t, os.Chtimes(filepath.Join(dir, "big"), old, old))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "abs"), []unix.Timespec{{Sec: -77, Nsec: 5}, {Sec: -77, Nsec: 5}}, unix.AT_SYMLINK_NOFOLLOW))
	must(t, os.Chtimes(filepath.Join(dir, "z"), old, old))
	deep := filepath.Join(dir, "deep")
	for range 30 {
		deep = filepath.Join(deep, strings.Repeat("d", 60))
	}
	write(t, filepath.Join(deep, "leaf"), []byte("leaf"))
}

func acl(ids ...uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	add := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	add(0x01, 7, 1<<32-1)
	for _, id := range ids {
		add(aclUser, 4, id)
	}
	add(0x04, 5, 1<<32-1)
	add(0x10, 5, 1<<32-1)
	add(0x20, 1, 1<<32-1)
	return b
}

func caps3(root uint32) []byte {
	b := make([]byte, capLen3)
	binary.LittleEndian.PutUint32(b, capRevision3|1)
	binary.LittleEndian.PutUint32(b[4:], 1<<13)
	binary.LittleEndian.PutUint32(b[capLen2:], root)
	return b
}

// rootTree adds what needs privileges, owned by ids from base on.
func rootTree(t testing.TB, dir string, base int) {
	t.Helper()
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t, unix.Mknod(p("whiteout"), unix.S_IFCHR, 0))
	must(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(200, 300))))
	write(t, p("ping"), []byte("#!"))
	write(t, p("acl"), []byte("acl"))
	must(t, os.Mkdir(p("opaque"), 0o755))
	must(t, unix.Setxattr(p("opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, base+len(path)%50, base+65535)
	}))
	must(t, unix.Setxattr(p("ping"), xattrCaps, caps3(uint32(base)), 0))
	must(t, unix.Setxattr(p("acl"), xattrACLAccess, acl(uint32(base+1), uint32(base+2)), 0))
	must(t, unix.Setxattr(p("d"), xattrACLDefault, acl(uint32(base+3)), 0))
	must(t, os.Chmod(p("exact"), 0o4711|os.ModeSetuid)) // chown cleared it
}

func TestEveryKindOfFileComesBackAsItWas(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	nastyTree(t, dir)
	if os.Geteuid() != 0 {
		must(t, os.Chmod(filepath.Join(dir, "closed"), 0o700))
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	info := capture1(t, s, source(dir), &recorder{})
	must(t, l.Close()) // removes it
	if info.Sockets != 1 {
		t.Errorf("sockets = %d", info.Sockets)
	}
	if info.NewBytes > 12<<20 {
		t.Errorf("%d new bytes: the holes were stored", info.NewBytes)
	}
	got := restore1(t, s, info.ID)
	must(t, os.Chtimes(dir, info.Time, info.Time)) // the socket's end moved it
	must(t, os.Chtimes(got, info.Time, info.Time))
	wantSameTree(t, dir, got)
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(got, "sparse"), &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("the sparse file takes %d bytes", st.Blocks*512)
	}
}

func TestKernelOwnersCapabilitiesAndACLsAreShifted(t *testing.T) {
	needRoot(t)
	const from, to = 700_000_000, 800_000_000
	s, dir, want := newStore(t), t.TempDir(), t.TempDir()
	nastyTree(t, dir)
	rootTree(t, dir, from)
	src := acmeSource(dir)
	src.IDs = env.IDRange{Base: from, Size: 65536}
	info := capture1(t, s, src, &recorder{})
	if info.Foreign != 0 {
		t.Errorf("%d foreign ids", info.Foreign)
	}
	s = travelled(t, s, info.ID) // which shifts nothing
	_, err := s.Restore(t.Context(), info.ID, map[string]string{"upper": want}, env.IDRange{Base: to, Size: 65536})
	must(t, err)
	a, b := describe(t, dir), describe(t, want)
	swap := strings.NewReplacer(" 7000", " 8000", ":7000", ":8000")
	hexID := func(id uint32) string { return fmt.Sprintf("%x", binary.LittleEndian.AppendUint32(nil, id)) }
	for k, v := range a {
		v = swap.Replace(v)
		for i := range uint32(4) {
			v = strings.ReplaceAll(v, hexID(from+i), hexID(to+i))
		}
		a[k] = v
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(b["ping"], hexID(to)) || !strings.Contains(b["acl"], hexID(to+2)) || !strings.Contains(b["big"], "800000") {
		t.Errorf("not shifted: %s, %s, %s", b["ping"], b["acl"], b["big"])
	}
	_, err = s.Restore(t.Context(), info.ID, map[string]string{"upper": t.TempDir()}, env.IDRange{Base: to, Size: 10})
	if err == nil || !strings.Contains(err.Error(), "outside the environment's range") {
		t.Errorf("a range that is too small: %v", err)
	}
}

func TestKernelForeignOwnersAreRecordedAsTheEnvironmentSeesThem(t *testing.T) {
	needRoot(t)
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x")) // owned by the host's root
	src := source(dir)
	src.IDs = env.IDRange{Base: 700_000_000, Size: 65536}
	info := capture1(t, s, src, &recorder{})
	if info.Foreign == 0 {
		t.Error("no foreign ids counted")
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(restore1(t, s, info.ID), "f"), &st))
	if st.Uid != overflowID {
		t.Errorf("uid = %d", st.Uid)
	}
}

func TestKernelRedirectedDirectoriesAreRefused(t *testing.T) {
	needRoot(t)
	s, dir := newStore(t), t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, unix.Setxattr(filepath.Join(dir, "d"), "trusted.overlay.redirect", []byte("/x"), 0))
	_, err := s.Capture(t.Context(), source(dir), &recorder{})
	if err == nil || !strings.Contains(err.Error(), "redirect_dir=off") {
		t.Errorf("error = %v", err)
	}
	if all, _ := s.Lineages(); len(all) != 0 {
		t.Errorf("a failed first capture left %v", all)
	}
}

// inMountNamespace runs f on a thread with mounts of its own, which end with it.
func inMountNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	must(t, <-done)
}

func TestKernelAnOverlaysChangesComeBackOverTheSameLower(t *testing.T) {
	overlayComesBack(t, func(s *Store, _ ID) *Store { return s })
}

func TestKernelAnOverlaysChangesComeBackOnAnotherNode(t *testing.T) {
	overlayComesBack(t, func(s *Store, id ID) *Store { return travelled(t, s, id) })
}

// travelled is the store of another node, which fetched the snapshot.
func travelled(t *testing.T, s *Store, id ID) *Store {
	t.Helper()
	other := newStore(t)
	imported(t, other, id, exported(t, s, id))
	return other
}

func overlayComesBack(t *testing.T, from func(*Store, ID) *Store) {
	t.Helper()
	needRoot(t)
	s, base := newStore(t), t.TempDir()
	p := func(name string) string { return filepath.Join(base, name) }
	for _, d := range []string{"lower", "upper", "work", "merged", "upper2", "work2", "merged2"} {
		must(t, os.Mkdir(p(d), 0o755))
	}
	write(t, p("lower/gone"), []byte("gone"))
	write(t, p("lower/kept"), []byte("kept"))
	write(t, p("lower/edited"), []byte("before"))
	write(t, p("lower/dir/hidden"), []byte("hidden"))
	mount := func(upper, work, merged string) error {
		return unix.Mount("overlay", p(merged), "overlay", 0,
			"lowerdir="+p("lower")+",upperdir="+p(upper)+",workdir="+p(work)+",redirect_dir=off,metacopy=off,index=off")
	}
	var want map[string]string
	inMountNamespace(t, func() error {
		if err := mount("upper", "work", "merged"); err != nil {
			return err
		}
		must(t, os.Remove(p("merged/gone")))
		must(t, os.RemoveAll(p("merged/dir")))
		write(t, p("merged/dir/new"), []byte("new"))
		must(t, os.WriteFile(p("merged/edited"), []byte("after"), 0o644))
		want = describe(t, p("merged"))
		return nil
	})
	info := capture1(t, s, acmeSource(p("upper")), &recorder{})
	s = from(s, info.ID)
	inMountNamespace(t, func() error {
		if _, err := s.Restore(t.Context(), info.ID, map[string]string{"upper": p("upper2")}, env.IDRange{}); err != nil {
			return err
		}
		if err := mount("upper2", "work2", "merged2"); err != nil {
			return err
		}
		if diff := cmp.Diff(want, describe(t, p("merged2"))); diff != "" {
			t.Error(diff)
		}
		if _, err := os.Lstat(p("merged2/dir/hidden")); err == nil {
			t.Error("the opaque directory shows what lies below it")
		}
		return nil
	})
}

// edit makes one random change to a tree.
func edit(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	name := func() string {
		return filepath.Join(dir, fmt.Sprintf("d%d", r.IntN(4)), fmt.Sprintf("f%d", r.IntN(30)))
	}
	p, q := name(), name()
	must(t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(t, os.MkdirAll(filepath.Dir(q), 0o755))
	switch r.IntN(10) {
	case 0, 1, 2:
		_ = os.RemoveAll(p)
		write(t, p, text(r.Uint64(), r.IntN(150_000)))
	case 3:
		if f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			_, err = f.Write(text(r.Uint64(), 5000))
			must(t, err)
			must(t, f.Close())
		}
	case 4:
		if f, err := os.OpenFile(p, os.O_WRONLY, 0); err == nil {
			_, err = f.WriteAt([]byte("patched"), int64(r.IntN(1000)))
			must(t, err)
			must(t, f.Close())
		}
	case 5:
		_ = os.RemoveAll(p)
	case 6:
		if _, err := os.Lstat(p); err == nil && p != q {
			_ = os.RemoveAll(q)
			must(t, os.Rename(p, q))
		}
	case 7:
		if st, err := os.Lstat(p); err == nil && p != q && st.Mode().IsRegular() {
			_ = os.RemoveAll(q)
			must(t, os.Link(p, q))
		}
	case 8:
		_ = os.RemoveAll(p)
		must(t, os.Symlink(fmt.Sprint(r.Uint64()), p))
	case 9:
		if _, err := os.Stat(p); err == nil {
			must(t, os.Chmod(p, os.FileMode(0o600|r.IntN(64))))
			must(t, unix.Setxattr(p, "user.x", []byte(fmt.Sprint(r.Uint64())), 0))
		}
	}
}

func TestRandomEditsOverManySnapshotsComeBackExactly(t *testing.T) {
	for seed := range uint64(2) {
		s, dir := newStore(t), t.TempDir()
		r := rand.New(rand.NewPCG(seed, 9))
		var ids []ID
		var want []map[string]string
		for range 8 {
			for range 40 {
				edit(t, r, dir)
			}
			f := &recorder{onFreeze: func() error { // the last edits come after the running pass
				for range 5 {
					edit(t, r, dir)
				}
				return nil
			}}
			ids = append(ids, capture1(t, s, source(dir), f).ID)
			want = append(want, describe(t, dir))
		}
		for i, id := range ids {
			if diff := cmp.Diff(want[i], describe(t, restore1(t, s, id))); diff != "" {
				t.Fatalf("seed %d: %s: %s", seed, id, diff)
			}
		}
	}
}

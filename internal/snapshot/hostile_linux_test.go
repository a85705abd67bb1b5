package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// forged is a stream by a node that has a secret of its own and lies with
// names and codes that are right.
type forged struct {
	id      ID
	secret  []byte
	k       *keys
	records [][]byte
	root    *entry
	info    Info
}

func newForged(t testing.TB, id ID) *forged {
	t.Helper()
	return forgedOf(t, id, newOwner(acme).Secret)
}

func forgedOf(t testing.TB, id ID, secret []byte) *forged {
	t.Helper()
	k, err := deriveKeys(secret)
	must(t, err)
	lin, seq, _ := strings.Cut(string(id), "/")
	n := uint64(0)
	_, err = fmt.Sscan(seq, &n)
	must(t, err)
	return &forged{
		id: id, secret: secret, k: k, root: &entry{kind: kindDir},
		info: Info{ID: id, Lineage: Lineage(lin), Seq: n, Roots: []string{"upper"}},
	}
}

func (f *forged) record(kind recordKind, data []byte) chunkID {
	id := f.k.newHasher().id(kind, data)
	f.records = append(f.records, appendRecord(nil, location{id: id, raw: uint32(len(data)), kind: kind}, data))
	return id
}

func (f *forged) stream(t testing.TB) []byte {
	t.Helper()
	ref, err := encodeRef(f.k, &refRecord{Info: f.info, RootEntries: [][]byte{encodeRootEntry(f.root)}})
	must(t, err)
	return f.streamOf(t, ref)
}

func (f *forged) streamOf(t testing.TB, ref []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := &streamWriter{&b}
	must(t, w.begin(streamHead{ID: f.id, Tenant: acme, Secret: f.secret}))
	must(t, w.frame(frameRef, ref))
	for _, r := range f.records {
		must(t, w.frame(frameRecord, r))
	}
	must(t, w.end(uint64(len(f.records))))
	return b.Bytes()
}

func wantRefused(t *testing.T, s *Store, id ID, stream []byte, want error, says string) {
	t.Helper()
	_, err := s.Import(t.Context(), id, acme, bytes.NewReader(stream))
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("error = %v, want %v that says %q", err, want, says)
	}
	if all, err := s.Lineages(); len(all) != 0 || err != nil {
		t.Errorf("lineages = %v, %v", all, err)
	}
}

// A record's length before compression is what the limits count, so a stored
// one must not be longer: zstd may be padded with frames that hold nothing.
func TestARecordThatIsPaddedIsRefused(t *testing.T) {
	s, f := newStore(t), newForged(t, "e-padded/1")
	data := bytes.Repeat([]byte("a"), 200)
	payload, codec := s.comp.shrink(data, nil)
	if codec != codecZstd {
		t.Fatal("not compressed")
	}
	skipped := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, 1<<20) // RFC 8878, 3.1.2
	payload = append(append(bytes.Clone(payload), skipped...), make([]byte, 1<<20)...)
	id := f.k.newHasher().id(kindData, data)
	f.records = append(f.records, appendRecord(nil, location{id: id, raw: 200, kind: kindData, codec: codecZstd}, payload))
	f.root.pages = []chunkID{f.record(kindPage, page(&entry{name: "f", kind: kindFile, size: 200, segments: []segment{{200, id}}}))}
	wantRefused(t, s, f.id, f.stream(t), env.ErrCorrupt, "out of bounds")
}

// A file of lists that list nothing would cost a read for each and count as
// nothing.
func TestAnEmptyListIsRefused(t *testing.T) {
	s, f := newStore(t), newForged(t, "e-lists/1")
	full := f.record(kindList, encodeList([]segment{{length: 5}}))
	none := f.record(kindList, encodeList(nil))
	f.root.pages = []chunkID{f.record(kindPage, page(&entry{name: "f", kind: kindFile, size: 5, lists: []chunkID{none, full}}))}
	wantRefused(t, s, f.id, f.stream(t), env.ErrCorrupt, "list")
}

// One page that many directories name holds its attributes once; a restore
// writes them as often as it is named.
func TestAttributesCountAsData(t *testing.T) {
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: Limits{Entries: 100, Bytes: 1 << 20}}, nil, quiet())
	must(t, err)
	defer s.Close()
	bomb := func(dirs int) *forged {
		f := newForged(t, "e-bomb/1")
		shared := f.record(kindPage, page(&entry{name: "f", kind: kindFifo, xattrs: []xattr{{"user.a", strings.Repeat("x", 60<<10)}}}))
		var all []*entry
		for i := range dirs {
			all = append(all, &entry{name: fmt.Sprintf("d%02d", i), kind: kindDir, pages: []chunkID{shared}})
		}
		f.root.pages = []chunkID{f.record(kindPage, page(all...))}
		return f
	}
	f := bomb(40)
	wantRefused(t, s, f.id, f.stream(t), env.ErrExhausted, "bytes of data")
	f = bomb(20)
	imported(t, s, f.id, f.stream(t))
}

// JSON makes 50 bytes and more of one; the reference may be long, but not of
// many parts.
func TestAReferenceOfManyPartsIsRefused(t *testing.T) {
	s, f := newStore(t), newForged(t, "e-json/1")
	body := `{"root_entries":[` + strings.Repeat("0,", 1<<20) + `0]}`
	ref := binary.LittleEndian.AppendUint32([]byte(refMagic), refVersion)
	ref = binary.LittleEndian.AppendUint32(ref, uint32(len(body)))
	ref = append(ref, body...)
	ref = append(ref, refSum(f.k, ref)...)
	wantRefused(t, s, f.id, f.streamOf(t, ref), env.ErrCorrupt, "parts")
}

func TestAnImportCountsForItself(t *testing.T) {
	s, f := newStore(t), newForged(t, "e-counts/1")
	f.root.pages = []chunkID{f.record(kindPage, page(&entry{name: "a", kind: kindFifo}, &entry{name: "f", kind: kindFile, size: 5, segments: []segment{{length: 5}}}))}
	f.info.Files, f.info.Bytes, f.info.NewBytes = -1, math.MaxInt64, math.MaxInt64
	info := imported(t, s, f.id, f.stream(t))
	kept, err := s.Get(f.id)
	must(t, err)
	for _, i := range []Info{info, kept} {
		if i.Files != 3 || i.Bytes != 5 || i.NewBytes < 100 || i.NewBytes > 10_000 {
			t.Errorf("%d files, %d bytes, %d new", i.Files, i.Bytes, i.NewBytes)
		}
	}
	must(t, s.Delete("e-counts"))
	f.info.Took = -1
	wantRefused(t, s, f.id, f.stream(t), env.ErrCorrupt, "no capture says")
}

// References are found by the order of their names.
func TestASnapshotNumberBehindWhichNoneFollowsIsRefused(t *testing.T) {
	s := newStore(t)
	for _, seq := range []string{"10000000000000000", "9223372036854775807"} {
		f := newForged(t, ID("e-last/"+seq))
		wantRefused(t, s, f.id, f.stream(t), env.ErrInvalid, "snapshot id")
	}
	f := newForged(t, "e-last/9999999999999999")
	imported(t, s, f.id, f.stream(t))
	if head, err := s.Head("e-last"); err != nil || head.ID != f.id {
		t.Errorf("head = %s, %v", head.ID, err)
	}
	src := acmeSource(t.TempDir())
	src.Lineage = "e-last"
	fr := &recorder{}
	if _, err := s.Capture(t.Context(), src, fr); !errors.Is(err, env.ErrExhausted) || fr.freezes > 0 {
		t.Errorf("error = %v after %d freezes", err, fr.freezes)
	}
	if head, err := s.Head("e-last"); err != nil || head.ID != f.id {
		t.Errorf("head = %s, %v", head.ID, err)
	}
}

// Names can be chosen so that each ends a page; then the directory's pages do
// not fit into the record that has to name them.
func TestADirectoryOfTooManyPagesIsRefused(t *testing.T) {
	s := newStore(t)
	a, err := s.openAddition("e-test", newOwner(acme))
	must(t, err)
	defer a.close()
	w := newWorker(&capture{ctx: t.Context(), s: s, addition: a})
	dir := func(name string, kids ...*node) *node {
		return &node{name: name, st: fileStat{kind: kindDir}, e: &entry{name: name, kind: kindDir}, kids: kids}
	}
	var kids []*node
	for i := 0; len(kids) <= maxRaw/len(chunkID{}); i++ {
		start := fmt.Sprintf("%05x", i)
		sum, end := crc([]byte(start)), make([]byte, 2)
		for k := range 1 << 16 {
			end[0], end[1] = byte(k>>8)|0x80, byte(k)|0x80
			if k&0x8080 != 0 || crc32.Update(sum, castagnoli, end)&pageMask != 0 {
				continue
			}
			name := start + string(end)
			kids = append(kids, &node{name: name, st: fileStat{kind: kindFifo}, e: &entry{name: name, kind: kindFifo}})
		}
	}
	b := &builder{put: w.put}
	_, err = b.dir(dir("", dir("sub", kids...)))
	if !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), "names in one directory") {
		t.Errorf("error = %v", err)
	}
}

func TestALineageThatCannotBeBegunLeavesNothing(t *testing.T) {
	a, tree := newStore(t), t.TempDir()
	write(t, filepath.Join(tree, "f"), []byte("x"))
	info := capture1(t, a, acmeSource(tree), &recorder{})
	stream := exported(t, a, info.ID)
	fail, injected := "", errors.New("injected")
	s := openStore(t, filepath.Join(t.TempDir(), "store"), func(op string) error {
		if op == fail {
			return injected
		}
		return nil
	})
	for _, step := range []string{"lineage:mkdir", "lineage:syncdir", "owner:write", "owner:sync", "owner:link", "owner:syncdir"} {
		fail = step
		_, ierr := s.Import(t.Context(), info.ID, acme, bytes.NewReader(stream))
		_, cerr := s.Capture(t.Context(), acmeSource(tree), &recorder{})
		if !errors.Is(ierr, injected) || !errors.Is(cerr, injected) {
			t.Fatalf("%s: %v, %v", step, ierr, cerr)
		}
		if all, err := os.ReadDir(s.lin.Path()); len(all) != 0 || err != nil {
			t.Errorf("%s: left %v, %v", step, all, err)
		}
	}
}

func TestAForkOverWhatCannotBeReadIsNotCalledExisting(t *testing.T) {
	s, tree := newStore(t), t.TempDir()
	info := capture1(t, s, acmeSource(tree), &recorder{})
	write(t, filepath.Join(s.lin.Path(), "e-child", refsName), []byte("no directory"))
	if _, err := s.Fork(t.Context(), info.ID, "e-child", acme); err == nil || errors.Is(err, env.ErrExists) {
		t.Errorf("error = %v", err)
	}
}

// Capabilities of revision 2 are good for the host's root.
func TestCapabilitiesOfTheHostsRootBecomeThoseOfTheEnvironments(t *testing.T) {
	v2 := make([]byte, capLen2)
	binary.LittleEndian.PutUint32(v2, capRevision2|1)
	out, err := idMap{Base: 100_000, Size: 65_536}.xattrOut(xattr{xattrCaps, string(v2)})
	must(t, err)
	want := binary.LittleEndian.AppendUint32(bytes.Clone(v2), 100_000)
	binary.LittleEndian.PutUint32(want, capRevision3|1)
	if out != string(want) {
		t.Errorf("restored as %x, want %x", out, want)
	}
	if out, err = (idMap{}).xattrOut(xattr{xattrCaps, string(v2)}); err != nil || out != string(v2) {
		t.Errorf("without a range: %x, %v", out, err)
	}
}

func TestLimitsWithoutEndDoNotOverflow(t *testing.T) {
	l := Limits{Entries: math.MaxInt64, Bytes: math.MaxInt64}.withDefaults()
	c := importLimits{Limits: &l}
	if err := errors.Join(l.checkReceived(1, 1), c.acceptPiece(segment{length: 1, id: chunkID{1}}), c.accept(1, &entry{kind: kindFifo})); err != nil {
		t.Error(err)
	}
}

func TestAHeadThatLiesIsQuoted(t *testing.T) {
	var b bytes.Buffer
	w := &streamWriter{&b}
	must(t, w.begin(streamHead{ID: "e-test/1\nlevel=ERROR forged", Tenant: acme, Secret: make([]byte, keyLen)}))
	_, err := newStore(t).Import(t.Context(), "e-test/1", acme, &b)
	if !errors.Is(err, env.ErrDenied) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error = %v", err)
	}
}

func TestKernelAnImportOntoAFullDiskLeavesNothing(t *testing.T) {
	needRoot(t)
	a, tree := newStore(t), t.TempDir()
	write(t, filepath.Join(tree, "small"), random(1, 100_000))
	small := capture1(t, a, acmeSource(tree), &recorder{})
	write(t, filepath.Join(tree, "big"), random(2, 8<<20))
	big := capture1(t, a, acmeSource(tree), &recorder{})
	mnt := t.TempDir()
	must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(mnt, 0)) })
	s, err := Open(Config{Dir: filepath.Join(mnt, "store")}, nil, quiet())
	must(t, err)
	defer s.Close()
	wantRefused(t, s, big.ID, exported(t, a, big.ID), env.ErrExhausted, "no room")
	imported(t, s, small.ID, exported(t, a, small.ID))
	var before, after unix.Statfs_t
	must(t, unix.Statfs(mnt, &before))
	if _, err := s.Import(t.Context(), big.ID, acme, bytes.NewReader(exported(t, a, big.ID))); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("error = %v", err)
	}
	must(t, unix.Statfs(mnt, &after))
	if after.Bfree < before.Bfree {
		t.Errorf("%d blocks are not given back", before.Bfree-after.Bfree)
	}
	if _, err := s.Verify(t.Context(), small.ID); err != nil {
		t.Error(err)
	}
}

// storeInMemory is a store whose fsyncs cost nothing, where there is room for one.
func storeInMemory(t testing.TB) *Store {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "snapshot-test-*")
	if err != nil {
		return newStore(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return openStore(t, filepath.Join(dir, "store"), nil)
}

// FuzzForged has streams whose checksums, codes and names are right and whose
// records are not. What is accepted verifies, and leaves for another store.
func FuzzForged(f *testing.F) {
	a, b := storeInMemory(f), storeInMemory(f)
	list := encodeList([]segment{{length: 5}, {length: 3, id: chunkID{1}}})
	for _, e := range sampleEntries() {
		f.Add(page(e), list, uint64(8), []byte("raw"), uint32(3))
	}
	hole := encodeList([]segment{{length: 5}})
	f.Add(page(&entry{name: "d", kind: kindDir}), hole, uint64(5), a.comp.enc.EncodeAll(text(1, 500), nil), uint32(500))
	f.Add(page(sampleEntries()...), hole, uint64(5), bytes.Repeat([]byte{0}, 200), uint32(200))
	f.Fuzz(func(t *testing.T, first, list []byte, size uint64, payload []byte, raw uint32) {
		if max(len(first), len(list), len(payload)) > maxRaw {
			return
		}
		o := forgedOf(t, "e-forged/1", bytes.Repeat([]byte{7}, keyLen))
		segs := []segment{}
		if data, err := a.comp.dec.DecodeAll(payload, make([]byte, 0, min(raw, maxRaw))); err == nil && len(data) > 0 {
			id := o.k.newHasher().id(kindData, data)
			o.records = append(o.records, appendRecord(nil, location{id: id, raw: raw, kind: kindData, codec: codecZstd}, payload))
			segs = append(segs, segment{uint64(len(data)), id})
			size = uint64(len(data))
		}
		e := &entry{name: "z", kind: kindFile, size: size, segments: segs}
		if len(segs) == 0 {
			e.lists = []chunkID{o.record(kindList, list)}
		}
		o.root.pages = []chunkID{o.record(kindPage, first), o.record(kindPage, page(e))}
		info, err := a.Import(t.Context(), o.id, acme, bytes.NewReader(o.stream(t)))
		all, lerr := a.Lineages()
		if lerr != nil || err != nil && len(all) > 0 {
			t.Fatalf("%v left %v, %v", err, all, lerr)
		}
		if err != nil {
			return
		}
		stats, err := a.Verify(t.Context(), o.id)
		if err != nil || stats.Files != info.Files {
			t.Fatalf("accepted %d files, verified %d: %v", info.Files, stats.Files, err)
		}
		if again := imported(t, b, o.id, exported(t, a, o.id)); again.Files != info.Files || again.Bytes != info.Bytes {
			t.Fatalf("%+v became %+v", info, again)
		}
		must(t, errors.Join(a.Delete("e-forged"), b.Delete("e-forged")))
	})
}

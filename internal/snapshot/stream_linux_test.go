package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

const acme = "acme"

func acmeSource(dir string) Source {
	src := source(dir)
	src.Tenant = acme
	return src
}

// mixedTree has files of many kinds, with few privileges.
func mixedTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 40 {
		write(t, filepath.Join(dir, fmt.Sprintf("d%d/f%d", i%7, i)), text(uint64(i), 500*i))
	}
	write(t, filepath.Join(dir, "big"), random(1, 3<<20))
	write(t, filepath.Join(dir, "db"), append([]byte(sqliteMagic), random(2, 400_000)...))
	write(t, filepath.Join(dir, "same"), random(1, 3<<20))
	must(t, os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "d1/linked")))
	must(t, os.Symlink("../big", filepath.Join(dir, "d2/sym")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o711))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 20<<20)
	must(t, errors.Join(err, f.Close()))
	return dir
}

func exported(t testing.TB, s *Store, id ID) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, s.Export(t.Context(), id, &b))
	return b.Bytes()
}

func imported(t testing.TB, s *Store, id ID, stream []byte) Info {
	t.Helper()
	info, err := s.Import(t.Context(), id, acme, bytes.NewReader(stream))
	must(t, err)
	return info
}

func TestASnapshotTravelsAndItsLineageGoesOn(t *testing.T) {
	a, b, dir := newStore(t), newStore(t), mixedTree(t)
	capture1(t, a, acmeSource(dir), &recorder{})
	write(t, filepath.Join(dir, "second"), random(9, 100_000))
	sent := capture1(t, a, acmeSource(dir), &recorder{})

	got := imported(t, b, sent.ID, exported(t, a, sent.ID))
	if got.ID != sent.ID || got.Tenant != acme || got.Files != sent.Files || !got.Time.Equal(sent.Time) {
		t.Errorf("imported %+v", got)
	}
	if list, err := b.List("e-test"); err != nil || len(list) != 1 || list[0].Tenant != acme {
		t.Errorf("list = %+v, %v", list, err)
	}
	if _, err := b.Verify(t.Context(), sent.ID); err != nil {
		t.Error(err)
	}
	home := restore1(t, b, sent.ID)
	wantSameTree(t, dir, home)

	// What the first node knew of its files' times says nothing here.
	write(t, filepath.Join(home, "third"), random(10, 100_000))
	time.Sleep(2 * settleTime)
	next := capture1(t, b, acmeSource(home), &recorder{})
	if next.ID != "e-test/3" || next.Parent != sent.ID || next.NewBytes > 110_000 {
		t.Errorf("capture after the import: %+v", next)
	}
	if regular := int64(46); next.Read < regular {
		t.Errorf("only %d files were read", next.Read)
	}
	wantSameTree(t, home, restore1(t, b, next.ID))

	// And back, where most of it still is.
	back := imported(t, a, next.ID, exported(t, b, next.ID))
	if back.NewBytes > 110_000 {
		t.Errorf("%d bytes stored again", back.NewBytes)
	}
	wantSameTree(t, home, restore1(t, a, next.ID))
	if list, err := a.List("e-test"); err != nil || len(list) != 3 {
		t.Errorf("list = %+v, %v", list, err)
	}
	wantSameTree(t, home, restore1(t, a, capture1(t, a, acmeSource(home), &recorder{}).ID))
}

func TestAnOlderSnapshotThatArrivesLateIsNotSweptAway(t *testing.T) {
	a, b, dir := newStore(t), newStore(t), t.TempDir()
	var ids []ID
	for i := range 3 {
		write(t, filepath.Join(dir, "f"), random(uint64(i), 200_000)) // each has its own
		ids = append(ids, capture1(t, a, acmeSource(dir), &recorder{}).ID)
	}
	imported(t, b, ids[2], exported(t, a, ids[2]))
	imported(t, b, ids[0], exported(t, a, ids[0]))
	capture1(t, b, acmeSource(dir), &recorder{})
	if _, err := b.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	for _, id := range []ID{ids[0], ids[2], "e-test/4"} {
		if _, err := b.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestAForkTravelsWithoutItsParent(t *testing.T) {
	a, b, dir := newStore(t), newStore(t), mixedTree(t)
	parent := capture1(t, a, acmeSource(dir), &recorder{})
	write(t, filepath.Join(dir, "secret"), []byte("of the parent, after the fork"))
	capture1(t, a, acmeSource(dir), &recorder{})
	must(t, os.Remove(filepath.Join(dir, "secret")))
	child, err := a.Fork(t.Context(), parent.ID, "e-child", acme)
	must(t, err)
	src := acmeSource(dir)
	src.Lineage = "e-child"
	write(t, filepath.Join(dir, "own"), random(5, 50_000))
	own := capture1(t, a, src, &recorder{})

	stream := exported(t, a, own.ID)
	if bytes.Contains(stream, []byte("of the parent")) {
		t.Error("the stream has what the fork does not")
	}
	imported(t, b, own.ID, stream)
	wantSameTree(t, dir, restore1(t, b, own.ID))
	if all, err := b.Lineages(); err != nil || len(all) != 1 {
		t.Errorf("lineages = %v, %v", all, err)
	}
	imported(t, b, child.ID, exported(t, a, child.ID))
	capture1(t, b, src, &recorder{})
	if _, err := b.Verify(t.Context(), child.ID); err != nil {
		t.Error(err)
	}
	if err := b.Delete("e-child"); err != nil {
		t.Error(err)
	}
}

func TestImportingAgainChangesNothing(t *testing.T) {
	a, b, dir := newStore(t), newStore(t), mixedTree(t)
	info := capture1(t, a, acmeSource(dir), &recorder{})
	stream := exported(t, a, info.ID)
	imported(t, b, info.ID, stream)
	before := describe(t, b.dir.Path())
	// It does not even read the records.
	head := stream[:len(stream)/4]
	if again := imported(t, b, info.ID, head); again.ID != info.ID || again.Tenant != acme {
		t.Errorf("again = %+v", again)
	}
	if diff := cmp.Diff(before, describe(t, b.dir.Path())); diff != "" {
		t.Error(diff)
	}
	// But looks whether it is whole.
	packs, err := filepath.Glob(filepath.Join(b.dir.Path(), "lin/e-test/packs/*"))
	must(t, err)
	for _, p := range packs {
		must(t, os.Truncate(p, 1000))
	}
	if _, err := b.Import(t.Context(), info.ID, acme, bytes.NewReader(stream)); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("import over damage: %v", err)
	}
}

func TestImportRefusesWhatItDidNotAskFor(t *testing.T) {
	a, b, dir := newStore(t), newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	info := capture1(t, a, acmeSource(dir), &recorder{})
	stream := exported(t, a, info.ID)
	for name, try := range map[string]struct {
		id     ID
		tenant string
	}{
		"another lineage":  {"e-other/1", acme},
		"another number":   {"e-test/2", acme},
		"another tenant":   {info.ID, "other"},
		"no tenant at all": {info.ID, ""},
	} {
		if _, err := b.Import(t.Context(), try.id, try.tenant, bytes.NewReader(stream)); !errors.Is(err, env.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Import(t.Context(), "no id", acme, bytes.NewReader(stream)); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("no id: %v", err)
	}
	// A lineage of this name that was begun here is another one.
	capture1(t, b, acmeSource(dir), &recorder{})
	if _, err := b.Import(t.Context(), info.ID, acme, bytes.NewReader(stream)); !errors.Is(err, env.ErrState) {
		t.Errorf("independent lineage: %v", err)
	}
	// So is a snapshot of this number that was taken here.
	c := newStore(t)
	imported(t, c, info.ID, stream)
	write(t, filepath.Join(dir, "g"), []byte("y"))
	theirs := capture1(t, a, acmeSource(dir), &recorder{})
	write(t, filepath.Join(dir, "g"), []byte("z"))
	mine := capture1(t, c, acmeSource(dir), &recorder{})
	if _, err := c.Import(t.Context(), theirs.ID, acme, bytes.NewReader(exported(t, a, theirs.ID))); !errors.Is(err, env.ErrExists) || theirs.ID != mine.ID {
		t.Errorf("diverged: %v", err)
	}
}

func TestABrokenStreamLeavesNothing(t *testing.T) {
	a, dir := newStore(t), t.TempDir()
	for i := range 30 {
		write(t, filepath.Join(dir, fmt.Sprintf("d%d", i%3), fmt.Sprint(i)), random(uint64(i), 5000))
	}
	info := capture1(t, a, acmeSource(dir), &recorder{})
	stream := exported(t, a, info.ID)
	b := newStore(t)
	kept := acmeSource(dir)
	kept.Lineage = "e-kept"
	capture1(t, b, kept, &recorder{})
	want := describe(t, b.lin.Path())
	delete(want, ".") // its time may move
	fds := openFDs(t)
	refused := func(what string, s []byte) {
		t.Helper()
		_, err := b.Import(t.Context(), info.ID, acme, bytes.NewReader(s))
		if !errors.Is(err, env.ErrCorrupt) && !errors.Is(err, env.ErrUnavailable) && !errors.Is(err, env.ErrUnsupported) && !errors.Is(err, env.ErrDenied) {
			t.Fatalf("%s: %v", what, err)
		}
		got := describe(t, b.lin.Path())
		delete(got, ".")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s: %s", what, diff)
		}
	}
	for cut := 0; cut < len(stream); cut += 1 + len(stream)/60 {
		refused(fmt.Sprintf("cut at %d", cut), stream[:cut])
	}
	refused("cut before its last byte", stream[:len(stream)-1])
	refused("a byte too many", append(bytes.Clone(stream), 0))
	for at := 0; at < len(stream); at += 1 + len(stream)/60 {
		bad := bytes.Clone(stream)
		bad[at] ^= 0x10
		refused(fmt.Sprintf("byte %d flipped", at), bad)
	}
	if now := openFDs(t); now > fds {
		t.Errorf("%d descriptors leaked", now-fds)
	}
	imported(t, b, info.ID, stream)
}

// frames takes a stream apart.
func frames(t testing.TB, stream []byte) (kinds []frameKind, payloads [][]byte) {
	t.Helper()
	r := &streamReader{r: bytes.NewReader(stream[streamHdrLen:])}
	for {
		kind, b, err := r.frame()
		must(t, err)
		kinds, payloads = append(kinds, kind), append(payloads, bytes.Clone(b))
		if kind == frameEnd {
			return kinds, payloads
		}
	}
}

func join(t testing.TB, start []byte, kinds []frameKind, payloads [][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Write(start[:streamHdrLen])
	w := &streamWriter{&b}
	for i, k := range kinds {
		must(t, w.frame(k, payloads[i]))
	}
	return b.Bytes()
}

func TestALyingStreamIsRefused(t *testing.T) {
	a, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), random(1, 200_000))
	info := capture1(t, a, acmeSource(dir), &recorder{})
	k := lineageKeys(t, a, "e-test")
	stream := exported(t, a, info.ID)
	kinds, payloads := frames(t, stream)
	extra := []byte("what nobody named")
	record := appendRecord(nil, location{id: k.newHasher().id(kindData, extra), raw: uint32(len(extra)), kind: kindData}, extra)
	forged := appendRecord(nil, location{id: chunkID{1}, raw: uint32(len(extra)), kind: kindData}, extra)
	n := len(kinds)
	count := func(n byte) []byte { return []byte{n, 0, 0, 0, 0, 0, 0, 0} }
	splice := func(drop int, end []byte, add ...[]byte) []byte {
		ks := append([]frameKind{}, kinds[:n-1-drop]...)
		ps := append([][]byte{}, payloads[:n-1-drop]...)
		for _, r := range add {
			ks, ps = append(ks, frameRecord), append(ps, r)
		}
		return join(t, stream, append(ks, frameEnd), append(ps, end))
	}
	for name, c := range map[string]struct {
		stream []byte
		says   string
	}{
		"a record that is not named":  {splice(0, count(byte(n-2)), record), "does not name"},
		"a record with a wrong name":  {splice(0, count(byte(n-2)), forged), "does not match its id"},
		"a record is missing":         {splice(1, count(byte(n-4))), "is missing"},
		"an end that counts wrongly":  {splice(0, count(99)), "does not count"},
		"two references":              {join(t, stream, append([]frameKind{frameHead, frameRef}, kinds[1:]...), append([][]byte{payloads[0], payloads[1]}, payloads[1:]...)), "among its records"},
		"no head":                     {join(t, stream, kinds[1:], payloads[1:]), "where"},
		"a frame that is too long":    {append(bytes.Clone(stream[:streamHdrLen]), byte(frameHead), 255, 255, 255, 255, 0, 0, 0, 0), "frame 1 of"},
		"a frame of an unknown kind":  {append(bytes.Clone(stream[:streamHdrLen]), 77, 1, 0, 0, 0, 0, 0, 0, 0), "frame 77"},
		"another version":             {append([]byte(streamMagic), 9, 0, 0, 0), "newer program"},
		"no stream":                   {[]byte("<html>502 Bad Gateway</html>"), "not a snapshot stream"},
		"a record with bytes after":   {splice(0, count(byte(n-2)), append(bytes.Clone(record), 0)), "bytes after a record"},
		"a record that is not a page": {splice(0, count(byte(n-2)), []byte("REC1")), "no record header"},
	} {
		b := newStore(t)
		_, err := b.Import(t.Context(), info.ID, acme, bytes.NewReader(c.stream))
		if err == nil || !strings.Contains(err.Error(), c.says) || !errors.Is(err, env.ErrCorrupt) && !errors.Is(err, env.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if all, err := b.Lineages(); len(all) != 0 || err != nil {
			t.Errorf("%s: lineages = %v, %v", name, all, err)
		}
	}
}

// forge makes a stream of a snapshot whose root has these pages, with names and
// codes that are right.
func forge(t testing.TB, id ID, pages ...[]byte) []byte {
	t.Helper()
	o := newOwner(acme)
	k, err := deriveKeys(o.Secret)
	must(t, err)
	h := k.newHasher()
	root := &entry{kind: kindDir}
	var records [][]byte
	for _, p := range pages {
		pid := h.id(kindPage, p)
		root.pages = append(root.pages, pid)
		records = append(records, appendRecord(nil, location{id: pid, raw: uint32(len(p)), kind: kindPage}, p))
	}
	lin, seq, err := ParseID(string(id))
	must(t, err)
	ref, err := encodeRef(k, &refRecord{Info: Info{ID: id, Lineage: lin, Seq: seq, Roots: []string{"upper"}}, RootEntries: [][]byte{encodeRootEntry(root)}})
	must(t, err)
	var b bytes.Buffer
	w := &streamWriter{&b}
	must(t, w.begin(streamHead{ID: id, Tenant: acme, Secret: o.Secret}))
	must(t, w.frame(frameRef, ref))
	for _, r := range records {
		must(t, w.frame(frameRecord, r))
	}
	must(t, w.end(uint64(len(records))))
	return b.Bytes()
}

func page(entries ...*entry) []byte {
	b := []byte{pageMagic, treeVersion}
	for _, e := range entries {
		b = appendEntry(b, e)
	}
	return b
}

func TestAForgedTreeStaysWithinTheLimits(t *testing.T) {
	limits := Limits{Entries: 50, Bytes: 1 << 20, FileBytes: 1 << 20, Depth: 4}
	many := []byte{pageMagic, treeVersion}
	for i := range 60 {
		many = appendEntry(many, &entry{name: fmt.Sprintf("f%02d", i), kind: kindFifo})
	}
	for name, c := range map[string]struct {
		page []byte
		want error
	}{
		"too many names":            {many, env.ErrExhausted},
		"a file too long":           {page(&entry{name: "f", kind: kindFile, size: 2 << 20, segments: []segment{{length: 2 << 20}}}), env.ErrExhausted},
		"an attribute of no kind":   {page(&entry{name: "f", kind: kindFifo, xattrs: []xattr{{"security.ima", "x"}}}), env.ErrCorrupt},
		"a redirect":                {page(&entry{name: "f", kind: kindFifo, xattrs: []xattr{{"trusted.overlay.redirect", "/"}}}), env.ErrUnsupported},
		"a name that leaves":        {page(&entry{name: "..", kind: kindFifo}), env.ErrCorrupt},
		"a name with a slash":       {page(&entry{name: "a/b", kind: kindFifo}), env.ErrCorrupt},
		"names that are not sorted": {page(&entry{name: "b", kind: kindFifo}, &entry{name: "a", kind: kindFifo}), env.ErrCorrupt},
		"an empty page":             {page(), env.ErrCorrupt},
		"an endless hole":           {page(&entry{name: "f", kind: kindFile, size: 1 << 61, segments: []segment{{length: 1 << 61}}}), env.ErrExhausted},
		"data that is not there":    {page(&entry{name: "f", kind: kindFile, size: 5, segments: []segment{{length: 5, id: chunkID{3}}}}), env.ErrCorrupt},
		"not a page":                {[]byte("junk"), env.ErrCorrupt},
	} {
		s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: limits}, nil, quiet())
		must(t, err)
		if _, err := s.Import(t.Context(), "e-forged/1", acme, bytes.NewReader(forge(t, "e-forged/1", c.page))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if all, err := s.Lineages(); len(all) != 0 || err != nil {
			t.Errorf("%s: lineages = %v, %v", name, all, err)
		}
		must(t, s.Close())
	}
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: limits}, nil, quiet())
	must(t, err)
	defer s.Close()
	imported(t, s, "e-forged/1", forge(t, "e-forged/1", page(&entry{name: "ok", kind: kindFifo})))
}

// A page that names itself by way of a second would be a tree without end; a
// page that is named twice at each level, one of 2^depth directories.
func TestATreeThatUnfoldsIsStoppedByTheLimits(t *testing.T) {
	o := newOwner(acme)
	k, err := deriveKeys(o.Secret)
	must(t, err)
	h := k.newHasher()
	below := page(&entry{name: "leaf", kind: kindFifo})
	pages := [][]byte{below}
	for range 100 {
		id := h.id(kindPage, below)
		below = page(&entry{name: "a", kind: kindDir, pages: []chunkID{id}}, &entry{name: "b", kind: kindDir, pages: []chunkID{id}})
		pages = append(pages, below)
	}
	ref, err := encodeRef(k, &refRecord{
		Info:        Info{ID: "e-bomb/1", Lineage: "e-bomb", Seq: 1, Roots: []string{"upper"}},
		RootEntries: [][]byte{encodeRootEntry(&entry{kind: kindDir, pages: []chunkID{h.id(kindPage, below)}})},
	})
	must(t, err)
	var b bytes.Buffer
	w := &streamWriter{&b}
	must(t, w.begin(streamHead{ID: "e-bomb/1", Tenant: acme, Secret: o.Secret}))
	must(t, w.frame(frameRef, ref))
	for _, p := range pages {
		must(t, w.frame(frameRecord, appendRecord(nil, location{id: h.id(kindPage, p), raw: uint32(len(p)), kind: kindPage}, p)))
	}
	must(t, w.end(uint64(len(pages))))
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "store"), Limits: Limits{Entries: 20_000}}, nil, quiet())
	must(t, err)
	defer s.Close()
	if _, err := s.Import(t.Context(), "e-bomb/1", acme, &b); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("error = %v", err)
	}
}

func FuzzImport(f *testing.F) {
	a, dir := newStore(f), f.TempDir()
	write(f, filepath.Join(dir, "f"), text(1, 1000))
	info := capture1(f, a, acmeSource(dir), &recorder{})
	good := exported(f, a, info.ID)
	f.Add(good, []byte(nil))
	f.Add(good[:len(good)/2], page(&entry{name: "a", kind: kindSymlink, target: "b"}))
	f.Add([]byte(streamMagic), page(sampleEntries()...))
	b := storeInMemory(f)
	f.Fuzz(func(t *testing.T, stream, page []byte) {
		try := func(id ID, stream []byte) {
			_, err := b.Import(t.Context(), id, acme, bytes.NewReader(stream))
			all, lerr := b.Lineages()
			if lerr != nil || err != nil && len(all) > 0 {
				t.Fatalf("%v left %v, %v", err, all, lerr)
			}
			if err != nil {
				return
			}
			if _, err := b.Verify(t.Context(), id); err != nil {
				t.Fatalf("accepted, and does not verify: %v", err)
			}
			l, _, _ := ParseID(string(id))
			must(t, b.Delete(l))
		}
		try(info.ID, stream)
		if len(page) < maxRaw {
			try("e-forged/1", forge(t, "e-forged/1", page))
		}
	})
}

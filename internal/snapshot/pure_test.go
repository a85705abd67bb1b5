package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func testKeys(t testing.TB) *keys {
	t.Helper()
	k, err := deriveKeys(bytes.Repeat([]byte{7}, keyLen))
	must(t, err)
	return k
}

func chunks(t testing.TB, g *gearTable, data []byte) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	var whole []byte
	_, err := split(bytes.NewReader(data), 0, int64(len(data)), g.cut, make([]byte, 2*chunkMax), func(c []byte) error {
		if len(c) > chunkMax || len(c) < chunkMin && len(whole)+len(c) != len(data) {
			t.Fatalf("chunk of %d bytes", len(c))
		}
		whole = append(whole, c...)
		out[string(c)] = true
		return nil
	})
	must(t, err)
	if !bytes.Equal(whole, data) {
		t.Fatal("the chunks do not make the data")
	}
	return out
}

func TestChunksKeepTheirBoundsAndTheirAverage(t *testing.T) {
	k := testKeys(t)
	data := random(3, 32<<20)
	n := len(chunks(t, &k.gear, data))
	if avg := len(data) / n; avg < 40<<10 || avg > 100<<10 {
		t.Errorf("average chunk = %d", avg)
	}
	chunks(t, &k.gear, make([]byte, 3<<20)) // zeros: the maximum decides
	for _, size := range []int{0, 1, chunkMin, chunkMin + 1, chunkMax, chunkMax + 1} {
		chunks(t, &k.gear, data[:size])
	}
}

func TestAnInsertionMovesFewChunks(t *testing.T) {
	k := testKeys(t)
	data := random(4, 16<<20)
	before := chunks(t, &k.gear, data)
	edited := slices.Concat(data[:8<<20], []byte("inserted"), data[8<<20:])
	fresh := 0
	for c := range chunks(t, &k.gear, edited) {
		if !before[c] {
			fresh += len(c)
		}
	}
	if fresh > 2*chunkMax {
		t.Errorf("%d new bytes for an insertion of 8", fresh)
	}
}

func TestChunksDependOnTheKey(t *testing.T) {
	a := testKeys(t)
	b, err := deriveKeys(bytes.Repeat([]byte{8}, keyLen))
	must(t, err)
	data := random(5, 8<<20)
	ca, cb := chunks(t, &a.gear, data), chunks(t, &b.gear, data)
	same := 0
	for c := range ca {
		if cb[c] {
			same++
		}
	}
	if same > 1 { // the tail may agree by chance
		t.Errorf("%d of %d chunks are the same under two keys", same, len(ca))
	}
	if a.newHasher().id(kindData, data) == b.newHasher().id(kindData, data) {
		t.Error("ids do not depend on the key")
	}
	if h := a.newHasher(); h.id(kindData, data) == h.id(kindPage, data) {
		t.Error("ids do not depend on the kind")
	}
}

func TestSplitStopsWhereTheFileEndsEarly(t *testing.T) {
	k := testKeys(t)
	data := random(6, 700_000)
	total := 0
	n, err := split(bytes.NewReader(data), 0, 1<<30, k.gear.cut, make([]byte, 2*chunkMax), func(c []byte) error {
		total += len(c)
		return nil
	})
	if err != nil || n != int64(len(data)) || total != len(data) {
		t.Errorf("split = %d, %v; %d bytes", n, err, total)
	}
}

func TestDatabasesAreCutInPages(t *testing.T) {
	k := testKeys(t)
	if got := k.gear.cutterFor(1<<20, []byte(sqliteMagic))(make([]byte, 1<<20)); got != pageBlock {
		t.Errorf("chunk = %d", got)
	}
}

func sampleEntries() []*entry {
	long := &entry{name: "long", kind: kindFile, size: 1 << 40, lists: []chunkID{{1}, {2}}}
	return []*entry{
		{name: "a", kind: kindFile, mode: 0o4755, uid: 1, gid: 65534, sec: -5, nsec: 999_999_999, link: 42, size: 30,
			segments: []segment{{length: 10, id: chunkID{9}}, {length: 20}},
			xattrs:   []xattr{{"user.a", "x"}, {"user.b", ""}}},
		{name: "b\xff\xfe", kind: kindDir, mode: 0o1777, pages: []chunkID{{3}}},
		{name: "c", kind: kindChar},
		{name: "d", kind: kindSymlink, target: "/etc/\xff"},
		{name: "e", kind: kindFifo},
		long,
	}
}

func TestEntriesSurviveTheirEncoding(t *testing.T) {
	want := sampleEntries()
	var got []*entry
	must(t, encodePages(want, func(b []byte) error {
		last := ""
		if len(got) > 0 {
			last = got[len(got)-1].name
		}
		page, err := decodePage(b, last)
		got = append(got, page...)
		return err
	}))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{}, segment{}, xattr{})); diff != "" {
		t.Error(diff)
	}
}

func TestAnEditInALargeDirectoryChangesOnePage(t *testing.T) {
	var all []*entry
	for i := range 20_000 {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(i))
		all = append(all, &entry{name: "f" + strings.ToUpper(string([]byte{'a' + n[2]>>4, 'a' + n[2]&15, 'a' + n[3]>>4, 'a' + n[3]&15})), kind: kindFifo})
	}
	pages := func() map[string]bool {
		m := map[string]bool{}
		must(t, encodePages(all, func(b []byte) error { m[string(b)] = true; return nil }))
		return m
	}
	before := pages()
	all = slices.Insert(all, 10_000, &entry{name: all[9999].name + "x", kind: kindFifo})
	fresh := 0
	for p := range pages() {
		if !before[p] {
			fresh++
		}
	}
	if fresh > 2 || len(before) < 50 {
		t.Errorf("%d new pages of %d", fresh, len(before))
	}
}

func TestIDsAreShiftedBothWays(t *testing.T) {
	m := idMap{Base: 1000000, Size: 65536}
	for host, want := range map[uint32]uint32{1000000: 0, 1065535: 65535, 0: overflowID, 999999: overflowID, 1065536: overflowID} {
		got, ok := m.in(host)
		if got != want || ok != (host >= m.Base && host-m.Base < m.Size) {
			t.Errorf("in(%d) = %d, %v", host, got, ok)
		}
	}
	if got, err := m.out(5); got != 1000005 || err != nil {
		t.Errorf("out = %d, %v", got, err)
	}
	if _, err := m.out(65536); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("out of range: %v", err)
	}
}

func TestCapabilitiesAndACLsFollowTheIDs(t *testing.T) {
	m := idMap{Base: 1000000, Size: 65536}
	v3 := make([]byte, capLen3)
	binary.LittleEndian.PutUint32(v3, capRevision3|1)
	binary.LittleEndian.PutUint32(v3[capLen2:], 1000000)
	v2 := make([]byte, capLen2)
	binary.LittleEndian.PutUint32(v2, capRevision2|1)
	for name, host := range map[string][]byte{"revision 3": v3, "revision 2": v2} {
		in, _, err := m.xattrIn(xattr{xattrCaps, string(host)})
		must(t, err)
		if len(in.value) != capLen3 || binary.LittleEndian.Uint32([]byte(in.value)[capLen2:]) != 0 {
			t.Errorf("%s: inside = %x", name, in.value)
		}
		out, err := m.xattrOut(in)
		must(t, err)
		if out != string(v3) {
			t.Errorf("%s: outside = %x, want %x", name, out, v3)
		}
	}
	acl := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag uint16
		id  uint32
	}{{1, 1<<32 - 1}, {aclUser, 1000007}, {aclGroup, 5}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, 7)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	in, foreign, err := m.xattrIn(xattr{xattrACLAccess, string(acl)})
	must(t, err)
	b := []byte(in.value)
	if binary.LittleEndian.Uint32(b[16:]) != 7 || binary.LittleEndian.Uint32(b[24:]) != overflowID || foreign != 1 {
		t.Errorf("inside = %x, %d foreign", b, foreign)
	}
}

func TestParseIDRefusesWhatIsNoID(t *testing.T) {
	for _, bad := range []string{"", "a", "a/", "/1", "a/0", "a/01", "a/-1", "a/+1", "A/1", "../1", "a/b/1", "a/1/2", strings.Repeat("a", 65) + "/1"} {
		if _, _, err := ParseID(bad); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("ParseID(%q) = %v", bad, err)
		}
	}
	l, seq, err := ParseID("e-01arz3ndektsv4rrffq69g5fav/12")
	if l != "e-01arz3ndektsv4rrffq69g5fav" || seq != 12 || err != nil {
		t.Errorf("%s, %d, %v", l, seq, err)
	}
}

func TestNewerFormatsAreRefusedAndNamed(t *testing.T) {
	k := testKeys(t)
	pack := encodePackHeader(k.id)
	pack[8] = 9
	_, packErr := decodePackHeader(pack)
	ref, err := encodeRef(k, &refRecord{})
	must(t, err)
	ref[8] = 9
	_, refErr := decodeRef(k, ref)
	_, pageErr := decodePage([]byte{pageMagic, 9}, "")
	sealed := appendRecord(nil, location{kind: kindData}, nil)
	sealed[6] = 1
	_, _, recErr := decodeRecord(sealed, packHeaderLen)
	for name, err := range map[string]error{
		"store": parseFormat(formatPrefix + "9\n"), "pack": packErr, "ref": refErr, "page": pageErr, "record": recErr,
	} {
		if !errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "newer program") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// samplePack is a whole pack with a few records.
func samplePack(t testing.TB, k *keys) ([]byte, []location) {
	t.Helper()
	b := encodePackHeader(k.id)
	var table []location
	h := k.newHasher()
	for i := range 5 {
		data := random(uint64(i), 100*i)
		l := location{id: h.id(kindData, data), offset: uint64(len(b)), raw: uint32(len(data)), stored: uint32(len(data)), kind: kindData}
		b = appendRecord(b, l, data)
		table = append(table, l)
	}
	sortTable(table)
	return append(b, encodeTrailer(table, uint64(len(b)))...), table
}

func TestAPackWithoutItsTableIsReadByItsRecords(t *testing.T) {
	k := testKeys(t)
	b, want := samplePack(t, k)
	opt := cmp.AllowUnexported(location{})
	got, rescued, err := readPack(bytes.NewReader(b), int64(len(b)), k.id)
	if diff := cmp.Diff(want, got, opt); diff != "" || rescued || err != nil {
		t.Errorf("whole: %v, %v: %s", rescued, err, diff)
	}
	for cut := 1; cut < footerLen+len(want)*tableEntryLen; cut += 13 {
		got, rescued, err := readPack(bytes.NewReader(b), int64(len(b)-cut), k.id)
		if diff := cmp.Diff(want, got, opt); diff != "" || !rescued || err != nil {
			t.Fatalf("cut by %d: %v, %v: %s", cut, rescued, err, diff)
		}
	}
	torn := slices.Clone(b[:want[0].offset+20])
	if got, _, err := readPack(bytes.NewReader(torn), int64(len(torn)), k.id); err != nil || len(got) >= len(want) {
		t.Errorf("torn: %d records, %v", len(got), err)
	}
	if _, _, err := readPack(bytes.NewReader(b), int64(len(b)), [8]byte{1}); !errors.Is(err, env.ErrDenied) {
		t.Errorf("foreign key: %v", err)
	}
}

func FuzzPack(f *testing.F) {
	k := testKeys(f)
	good, _ := samplePack(f, k)
	f.Add(good)
	f.Add(good[:len(good)-10])
	f.Fuzz(func(t *testing.T, data []byte) {
		table, _, err := readPack(bytes.NewReader(data), int64(len(data)), k.id)
		if err != nil {
			return
		}
		for _, l := range table {
			if l.end() > uint64(len(data)) {
				t.Fatalf("record ends at %d of %d", l.end(), len(data))
			}
			_, _, _ = decodeRecord(data[l.offset:], l.offset)
		}
	})
}

func FuzzIndex(f *testing.F) {
	_, table := samplePack(f, testKeys(f))
	f.Add(encodeIndex(table, 100_000))
	f.Add(encodeIndex(nil, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, size, err := decodeIndex(data)
		if err == nil && !bytes.Equal(encodeIndex(table, size), data) {
			t.Fatal("an index does not encode to what was read")
		}
	})
}

func FuzzPage(f *testing.F) {
	must(f, encodePages(sampleEntries(), func(b []byte) error { f.Add(b); return nil }))
	f.Add([]byte{pageMagic, treeVersion})
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := decodePage(data, "")
		if err != nil {
			return
		}
		for i, e := range entries {
			if !properName(e.name) || i > 0 && entries[i-1].name >= e.name {
				t.Fatalf("name %q", e.name)
			}
		}
		b := []byte{pageMagic, treeVersion}
		for _, e := range entries {
			b = appendEntry(b, e)
		}
		again, err := decodePage(b, "")
		if diff := cmp.Diff(entries, again, cmp.AllowUnexported(entry{}, segment{}, xattr{})); diff != "" || err != nil {
			t.Fatalf("%v: %s", err, diff)
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add(encodeList([]segment{{length: 5}, {length: 7, id: chunkID{1}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		segs, err := decodeList(data)
		if err != nil {
			return
		}
		if again, err := decodeList(encodeList(segs)); err != nil || !slices.Equal(again, segs) {
			t.Fatal("a list does not survive its encoding")
		}
	})
}

func FuzzRootEntry(f *testing.F) {
	f.Add(encodeRootEntry(&entry{kind: kindDir, pages: []chunkID{{1}}}))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = decodeRootEntry(data) })
}

func FuzzRef(f *testing.F) {
	k := testKeys(f)
	good, err := encodeRef(k, &refRecord{Info: Info{ID: "a/1", Roots: []string{"upper"}}, RootEntries: [][]byte{{1}}})
	must(f, err)
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := decodeRef(k, data); err == nil && !bytes.Equal(data, good) {
			t.Fatal("a forged reference was accepted")
		}
	})
}

func FuzzBorrow(f *testing.F) {
	f.Add([]byte(`{"version":1,"lineage":"a","next_pack":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := decodeBorrow(data); err == nil && b.Lineage.check() != nil {
			t.Fatal("a borrow of no lineage")
		}
	})
}

func FuzzCache(f *testing.F) {
	key := [32]byte{1}
	roots := []*node{{st: fileStat{kind: kindDir, ino: 5}, pages: []chunkID{{1}}, kids: []*node{
		{name: "a", trusted: true, st: fileStat{kind: kindFile, ctime: timestamp{sec: -1, nsec: 3}}},
		{name: "b", st: fileStat{kind: kindDir}},
	}}}
	good := encodeCache(key, roots)
	f.Add(good[cacheHdrLen : len(good)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		b := slices.Concat(good[:cacheHdrLen], body)
		b = binary.LittleEndian.AppendUint32(b, crc(b))
		roots, err := decodeCache(b, key, 1, 8)
		if err != nil {
			return
		}
		if _, err := decodeCache(encodeCache(key, roots), key, 1, 8); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzShiftXattr(f *testing.F) {
	f.Add(xattrCaps, []byte("\x01\x00\x00\x03aaaaaaaaaaaaaaaa\x40\x42\x0f\x00"))
	f.Add(xattrACLAccess, []byte("\x02\x00\x00\x00\x02\x00\x07\x00\x40\x42\x0f\x00"))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		m := idMap{Base: 1000000, Size: 65536}
		in, foreign, err := m.xattrIn(xattr{name, string(value)})
		if err != nil {
			return
		}
		if _, err := m.xattrOut(in); err != nil && foreign == 0 {
			t.Fatalf("what was shifted in cannot be shifted out: %v", err)
		}
	})
}

package flow

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"hearth/internal/env"
)

func key(net env.NetID, port int) Key {
	return Key{
		NetID: net, Protocol: TCP,
		Local:  netip.AddrPortFrom(netip.MustParseAddr("100.96.0.2"), uint16(port)),
		Remote: netip.MustParseAddrPort("198.51.100.7:443"),
	}
}

// piece is a segment at an offset from the stream's first byte.
type piece struct {
	off  int
	data string
}

func TestPrefixIsWhatASenderMeant(t *testing.T) {
	long := string(bytes.Repeat([]byte("0123456789abcdef"), 200))
	for name, c := range map[string]struct {
		pieces   []piece
		want     string
		conflict bool
	}{
		"in order":                          {pieces: []piece{{0, "ab"}, {2, "cd"}}, want: "abcd"},
		"out of order":                      {pieces: []piece{{2, "cd"}, {0, "ab"}}, want: "abcd"},
		"a gap holds back what is after it": {pieces: []piece{{0, "ab"}, {3, "d"}}, want: "ab"},
		"nothing from the start":            {pieces: []piece{{1, "b"}}, want: ""},
		"retransmission":                    {pieces: []piece{{0, "ab"}, {0, "ab"}, {2, "c"}}, want: "abc"},
		"retransmission that is longer":     {pieces: []piece{{0, "ab"}, {0, "abcd"}}, want: "abcd"},
		"overlap that agrees":               {pieces: []piece{{0, "abc"}, {2, "cd"}}, want: "abcd"},
		"overlap that differs, first wins":  {pieces: []piece{{0, "abc"}, {1, "XYd"}}, want: "abcd", conflict: true},
		"differing bytes ahead of the gap":  {pieces: []piece{{2, "cc"}, {2, "dd"}, {0, "ab"}}, want: "abcc", conflict: true},
		"keep-alive before the first byte":  {pieces: []piece{{-1, "z"}, {0, "ab"}}, want: "ab"},
		"begins before the first byte":      {pieces: []piece{{-2, "zzab"}}, want: "ab"},
		"more than is kept":                 {pieces: []piece{{0, long}, {3200, "x"}}, want: long[:Cap]},
		"across the end":                    {pieces: []piece{{2000, long[2000:2100]}, {0, long[:2000]}}, want: long[:Cap]},
	} {
		for _, isn := range []uint32{0, 1, 1 << 31, 0xfffffffe, 0xffffffff} {
			t.Run(fmt.Sprintf("%s, from %#x", name, isn), func(t *testing.T) {
				table := NewTable(Limits{})
				var p Prefix
				for _, x := range c.pieces {
					p, _ = table.Add(Segment{Key: key(1, 1), Seq: isn + uint32(x.off), ISN: isn, HasISN: true, Data: []byte(x.data)})
				}
				if string(p.Data) != c.want || p.Conflict != c.conflict {
					t.Errorf("prefix %q conflict %v, want %q %v", p.Data, p.Conflict, c.want, c.conflict)
				}
			})
		}
	}
}

func TestWithoutAnISNTheFirstByteSeenIsTheFirst(t *testing.T) {
	table := NewTable(Limits{})
	table.Add(Segment{Key: key(1, 1), Seq: 100, Data: []byte("cd")})
	p, grown := table.Add(Segment{Key: key(1, 1), Seq: 98, Data: []byte("ab")})
	if string(p.Data) != "cd" || grown {
		t.Errorf("prefix %q, grown %v", p.Data, grown)
	}
}

func TestDirectionsAreStreamsOfTheirOwn(t *testing.T) {
	table := NewTable(Limits{})
	table.Add(Segment{Key: key(1, 1), Direction: Out, Seq: 5, ISN: 5, HasISN: true, Data: []byte("out")})
	p, _ := table.Add(Segment{Key: key(1, 1), Direction: In, Seq: 9, ISN: 9, HasISN: true, Data: []byte("in")})
	if string(p.Data) != "in" || table.Len() != 1 {
		t.Errorf("prefix %q, %d flows", p.Data, table.Len())
	}
}

func TestNewConnectionOnTheSamePortsStartsAfresh(t *testing.T) {
	table := NewTable(Limits{})
	p, _ := table.Add(Segment{Key: key(1, 1), Seq: 5, ISN: 5, HasISN: true, Data: []byte("old")})
	p.Seen.Rules = append(p.Seen.Rules, "x")
	p, _ = table.Add(Segment{Key: key(1, 1), Seq: 900, ISN: 900, HasISN: true, Data: []byte("new")})
	if string(p.Data) != "new" || p.Conflict || len(p.Seen.Rules) != 0 {
		t.Errorf("prefix %+v", p)
	}
}

func TestDatagramIsAPrefixOfItsOwn(t *testing.T) {
	table := NewTable(Limits{})
	k := key(1, 1)
	k.Protocol = UDP
	for _, text := range []string{"one", "two"} {
		if p, grown := table.Add(Segment{Key: k, Data: []byte(text)}); !grown || string(p.Data) != text {
			t.Errorf("prefix %q, grown %v", p.Data, grown)
		}
	}
	if table.Len() != 0 {
		t.Errorf("%d flows are held", table.Len())
	}
}

func TestAFloodOfFlowsCostsOnlyTheEnvironmentThatMakesIt(t *testing.T) {
	table := NewTable(Limits{Flows: 40, FlowsPerNet: 30})
	table.Add(Segment{Key: key(1, 1), Seq: 0, ISN: 0, HasISN: true, Data: []byte("ab")})
	for i := range 1000 {
		table.Add(Segment{Key: key(2, i), Data: []byte("x"), At: time.Duration(i)})
		table.Add(Segment{Key: key(3, i), Data: []byte("x"), At: time.Duration(i)})
	}
	if table.Len() > 40 || table.Evicted() < 1900 {
		t.Errorf("%d flows, %d evicted", table.Len(), table.Evicted())
	}
	if p, _ := table.Add(Segment{Key: key(1, 1), Seq: 2, ISN: 0, HasISN: true, Data: []byte("cd")}); string(p.Data) != "abcd" {
		t.Errorf("the quiet environment's prefix is %q", p.Data)
	}
}

func TestIdleFlowsAreForgotten(t *testing.T) {
	table := NewTable(Limits{Idle: time.Minute})
	table.Add(Segment{Key: key(1, 1), Data: []byte("x"), At: 0})
	table.Add(Segment{Key: key(1, 2), Data: []byte("x"), At: time.Minute})
	table.Expire(time.Minute + 1)
	if table.Len() != 1 {
		t.Errorf("%d flows, want 1", table.Len())
	}
	table.Forget(1)
	if table.Len() != 0 || len(table.nets) != 0 {
		t.Errorf("%d flows, %d nets, want none", table.Len(), len(table.nets))
	}
}

// model keeps every byte in a map: slow and plainly right.
type model struct {
	bytes    map[int]byte
	conflict bool
}

func (m *model) add(off int, data []byte) {
	for i, b := range data {
		at := off + i
		if at < 0 || at >= Cap {
			continue
		}
		if old, ok := m.bytes[at]; ok && old != b {
			m.conflict = true
		} else {
			m.bytes[at] = b
		}
	}
}

func (m *model) prefix() []byte {
	var out []byte
	for {
		b, ok := m.bytes[len(out)]
		if !ok {
			return out
		}
		out = append(out, b)
	}
}

// checkModel plays the same segments to both; steps of 4 bytes: offset (2,
// signed), length, fill.
func checkModel(t *testing.T, isn uint32, steps []byte) {
	t.Helper()
	table, m := NewTable(Limits{}), &model{bytes: map[int]byte{}}
	for last := 0; len(steps) >= 4; steps = steps[4:] {
		off := int(int16(uint16(steps[0]) | uint16(steps[1])<<8))
		data := make([]byte, steps[2])
		for i := range data {
			data[i] = byte(off+i) ^ steps[3]&1 // mostly what others say of the place
		}
		p, grown := table.Add(Segment{Key: key(1, 1), Seq: isn + uint32(off), ISN: isn, HasISN: true, Data: data})
		m.add(off, data)
		if want := m.prefix(); !bytes.Equal(p.Data, want) || p.Conflict != m.conflict || grown != (len(want) > last) {
			t.Fatalf("prefix of %d bytes (%v, grown %v), model %d (%v), before %d", len(p.Data), p.Conflict, grown, len(want), m.conflict, last)
		}
		last = len(p.Data)
	}
}

func TestReassemblyAgreesWithAModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		steps := make([]byte, 4*60)
		for i := range steps {
			steps[i] = byte(r.Uint32())
			if i%4 == 1 {
				steps[i] &= 7 // offsets within and just beyond the capture
			}
			if i%4 == 3 && r.IntN(20) > 0 {
				steps[i] = 0
			}
		}
		checkModel(t, r.Uint32(), steps)
	}
}

func FuzzReassembly(f *testing.F) {
	f.Add(uint32(0xfffffff0), []byte{0, 0, 200, 0, 200, 0, 200, 0, 100, 0, 255, 1})
	f.Add(uint32(1), []byte{0xff, 0xff, 5, 0, 0xff, 7, 255, 0})
	f.Fuzz(checkModel)
}

func BenchmarkAddInOrder(b *testing.B) {
	table := NewTable(Limits{})
	data := bytes.Repeat([]byte("x"), 512)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		isn := uint32(i / 4)
		table.Add(Segment{Key: key(env.NetID(i%64), i/4%4096), Seq: isn + uint32(i%4*512), ISN: isn, HasISN: true, Data: data, At: time.Duration(i)})
	}
}

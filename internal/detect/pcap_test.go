package detect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestNothingInMaltrailsCapturesIsMining(t *testing.T) {
	set, err := CheckRules()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/maltrail/*.pcap")
	if err != nil || len(files) < 39 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	segments := 0
	for _, name := range files {
		capture, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		report, err := Evaluate(set, capture)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(report.Findings) > 0 {
			t.Errorf("%s: %+v", name, report.Findings)
		}
		segments += report.Segments
	}
	// Or the reader has gone blind.
	if segments < 20 {
		t.Errorf("only %d segments with data in all captures", segments)
	}
}

// pcapFile writes a capture of Ethernet frames.
type pcapFile struct{ bytes.Buffer }

func newPcap(order binary.ByteOrder) *pcapFile {
	f := &pcapFile{}
	for _, v := range []any{uint32(0xa1b2c3d4), uint16(2), uint16(4), uint32(0), uint32(0), uint32(65535), uint32(1)} {
		_ = binary.Write(&f.Buffer, order, v)
	}
	return f
}

const (
	flagSYN = 2
	flagACK = 16
)

func (f *pcapFile) tcp(order binary.ByteOrder, out bool, seq uint32, flags byte, vlan bool, data string) {
	src, dst, sport, dport := []byte{10, 0, 0, 1}, []byte{203, 0, 113, 5}, uint16(40000), uint16(8080)
	if !out {
		src, dst, sport, dport = dst, src, dport, sport
	}
	frame := bytes.Repeat([]byte{2}, 12) // addresses
	if vlan {
		frame = append(frame, 0x81, 0, 0, 7)
	}
	frame = append(frame, 8, 0)
	ip := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0}, append(src, dst...)...)
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(data)))
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, sport)
	binary.BigEndian.PutUint16(tcp[2:], dport)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13] = 5<<4, flags
	frame = append(append(append(frame, ip...), tcp...), data...)
	for _, v := range []uint32{1, 0, uint32(len(frame)), uint32(len(frame))} {
		_ = binary.Write(&f.Buffer, order, v)
	}
	f.Write(frame)
}

func TestMinerInACaptureIsFound(t *testing.T) {
	set, err := CheckRules()
	if err != nil {
		t.Fatal(err)
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for name, c := range map[string]struct {
			build func(f *pcapFile, group string)
			dir   string
		}{
			"the miner, out of order and in small pieces": {func(f *pcapFile, group string) {
				said := strings.ReplaceAll(subscribe, "mining", group)
				f.tcp(order, true, 99, flagSYN, false, "")
				f.tcp(order, false, 499, flagSYN|flagACK, false, "")
				f.tcp(order, true, 100+20, flagACK, false, said[20:])
				f.tcp(order, true, 100, flagACK, false, said[:10])
				f.tcp(order, true, 100+10, flagACK, false, said[10:20])
			}, "out"},
			"the pool, without a handshake": {func(f *pcapFile, group string) {
				f.tcp(order, true, 7, flagACK, true, "x")
				f.tcp(order, false, 7, flagACK, true, `{"id":null,"method":"`+group+`.set_difficulty","params":[1]}`)
			}, "in"},
		} {
			t.Run(order.String()+" "+name, func(t *testing.T) {
				f := newPcap(order)
				c.build(f, "mining")
				report, err := Evaluate(set, f.Bytes())
				if err != nil {
					t.Fatal(err)
				}
				if len(report.Findings) != 1 || report.Findings[0].Rule != "mining.stratum_v1" ||
					report.Findings[0].Direction != c.dir || report.Findings[0].Remote.Port() != 8080 {
					t.Errorf("report = %+v", report)
				}
				other := newPcap(order)
				c.build(other, "pinging")
				if report, _ := Evaluate(set, other.Bytes()); report.Segments == 0 || len(report.Findings) != 0 {
					t.Errorf("without the words: %+v", report.Findings)
				}
			})
		}
	}
}

func TestWhatIsNotACaptureIsSaidToBeNone(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": nil, "text": []byte("this is not a capture at all"), "pcapng": append([]byte{0x0a, 0x0d, 0x0d, 0x0a}, make([]byte, 40)...),
	} {
		if _, err := Evaluate(nil, b); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := newPcap(binary.LittleEndian)
	f.Write(bytes.Repeat([]byte{0xff}, 16))
	if _, err := Evaluate(nil, f.Bytes()); !errors.Is(err, env.ErrCorrupt) {
		t.Errorf("a packet of 4 GiB: %v", err)
	}
}

func FuzzCapture(f *testing.F) {
	set, err := CheckRules()
	if err != nil {
		f.Fatal(err)
	}
	p := newPcap(binary.LittleEndian)
	p.tcp(binary.LittleEndian, true, 1, flagSYN, true, subscribe)
	f.Add(p.Bytes())
	for _, name := range []string{"vlan", "dlt_sll", "truncated", "fragments", "ipv4_options"} {
		b, err := os.ReadFile("testdata/maltrail/" + name + ".pcap")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = Evaluate(set, b) })
}

package detect

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"hearth/internal/detect/flow"
)

var cmpAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func counterValue(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

const payloadSize = payloadHead + payloadMax

// encodePayload makes a struct payload_event.
func encodePayload(seg flow.Segment) []byte {
	b := make([]byte, payloadSize)
	le, be := binary.LittleEndian, binary.BigEndian
	le.PutUint64(b, uint64(seg.At))
	le.PutUint32(b[8:], uint32(seg.Key.NetID))
	local, remote := seg.Key.Local.Addr().As4(), seg.Key.Remote.Addr().As4()
	copy(b[12:], local[:])
	copy(b[16:], remote[:])
	be.PutUint16(b[20:], seg.Key.Local.Port())
	be.PutUint16(b[22:], seg.Key.Remote.Port())
	le.PutUint32(b[24:], seg.Seq)
	le.PutUint32(b[28:], seg.ISN)
	le.PutUint16(b[32:], uint16(len(seg.Data)))
	le.PutUint16(b[34:], uint16(len(seg.Data)))
	b[36], b[37] = byte(seg.Direction), byte(seg.Key.Protocol)
	if seg.HasISN {
		b[38] = 1
	}
	copy(b[payloadHead:], seg.Data)
	return b
}

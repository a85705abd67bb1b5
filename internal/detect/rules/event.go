package rules

import (
	"bytes"
	"strconv"
	"sync"
)

// Kind is what a rule is asked about.
type Kind string

// The kinds of events; a condition names its event by the same word.
const (
	KindPayload Kind = "payload"
	KindExec    Kind = "exec"
	KindConnect Kind = "connect"
)

// Event is a *Payload, an *Exec or a *Connect.
type Event interface{ Kind() Kind }

// Payload is the beginning of one direction of a flow. A Payload is judged by
// one goroutine at a time.
type Payload struct {
	Direction  string `cel:"direction"` // "out": the environment sent it; "in"
	Protocol   string `cel:"protocol"`  // "tcp" or "udp"
	Data       []byte `cel:"data"`
	RemoteAddr string `cel:"remote_addr"`
	RemotePort int    `cel:"remote_port"`
	Segments   int    `cel:"segments"` // captures that made Data
	Conflict   bool   `cel:"conflict"` // the sender contradicted itself

	judged int // messages at the beginning that were judged before
	scan   sync.Once
	msgs   []*Message
}

// Kind implements Event.
func (*Payload) Kind() Kind { return KindPayload }

// Messages returns the JSON objects in the payload that were not judged before;
// it scans once.
func (p *Payload) Messages() []*Message {
	p.scan.Do(func() {
		if bytes.IndexByte(p.Data, '{') >= 0 || p.maybeFramed() {
			p.msgs = scanMessages(p.Data)
		}
	})
	return p.msgs[min(p.judged, len(p.msgs)):]
}

// Settled is how many messages at the beginning will be the same when more is
// known: all but an unfinished last one.
func (p *Payload) Settled() int {
	p.Messages()
	n := len(p.msgs)
	if n > 0 && !p.msgs[n-1].whole {
		n--
	}
	return n
}

// maybeFramed: masked WebSocket frames hide the brace.
func (p *Payload) maybeFramed() bool {
	return (bytes.HasPrefix(p.Data, []byte("GET ")) || bytes.HasPrefix(p.Data, []byte("HTTP/"))) && isUpgrade(p.Data)
}

// Exec is a new program image in an environment.
type Exec struct {
	PID  int      `cel:"pid"`
	PPID int      `cel:"ppid"`
	UID  int      `cel:"uid"` // on the host
	Comm string   `cel:"comm"`
	Path string   `cel:"path"` // as it was given to execve
	Args []string `cel:"args"` // cut after 512 bytes
}

// Kind implements Event.
func (*Exec) Kind() Kind { return KindExec }

// Connect is the outcome of a TCP connect.
type Connect struct {
	PID         int    `cel:"pid"`
	Comm        string `cel:"comm"`
	RemoteAddr  string `cel:"remote_addr"`
	RemotePort  int    `cel:"remote_port"`
	Established bool   `cel:"established"`
}

// Kind implements Event.
func (*Connect) Kind() Kind { return KindConnect }

// maxDetail bounds what a detection quotes.
const maxDetail = 256

// quote makes foreign bytes printable and short.
func quote(b []byte, n int) string {
	n = min(max(n, 0), maxDetail)
	if len(b) <= n {
		return strconv.QuoteToASCII(string(b))
	}
	return strconv.QuoteToASCII(string(b[:n])) + "…"
}

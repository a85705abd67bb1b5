package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// pace is how often each thing is tried.
const pace = 40 * time.Millisecond

// watched is what watch has seen so far.
type watched struct {
	mu        sync.Mutex
	PID       int   `json:"pid"`
	Started   int64 `json:"started"` // unix milliseconds
	Sent      int   `json:"sent"`
	Answered  int   `json:"answered"`
	Forbidden int   `json:"forbidden"` // datagrams that a forbidden address answered
	Refused   int   `json:"refused"`   // that were sent to one
	Names     int   `json:"names"`     // that were resolved
	// The longest times between the sending of two things that were answered, in
	// milliseconds: for so long nobody was there.
	NetGap  int64 `json:"netGapMs"`
	NameGap int64 `json:"nameGapMs"`
}

// watch is steady load: it sends to an address that answers, to some that must
// not, and asks for a name, until it is killed. What it saw is in the file,
// written anew every 200 ms: its reader may come and go.
func watch(file, public string, forbidden []string) {
	w := &watched{PID: os.Getpid(), Started: time.Now().UnixMilli()}
	go w.public(public)
	go w.names()
	for _, addr := range forbidden {
		go w.forbidden(addr)
	}
	for {
		time.Sleep(200 * time.Millisecond)
		w.mu.Lock()
		b, err := json.Marshal(w)
		w.mu.Unlock()
		check(err)
		check(os.WriteFile(file+".new", b, 0o644))
		check(os.Rename(file+".new", file))
	}
}

// steady asks at a fixed pace, whether or not earlier questions are answered, and
// tells of each, in their order, when it was sent and whether it was answered.
func steady(ask func() bool, told func(sent time.Time, answered bool)) {
	type question struct {
		sent     time.Time
		answered chan bool
	}
	asked := make(chan question, 64)
	go func() {
		for q := range asked {
			told(q.sent, <-q.answered)
		}
	}()
	for range time.Tick(pace) {
		q := question{time.Now(), make(chan bool, 1)}
		go func() { q.answered <- ask() }()
		asked <- q
	}
}

func (w *watched) public(addr string) {
	last := time.Now()
	steady(func() bool { return ask(addr, time.Second) }, func(sent time.Time, answered bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.Sent++
		if answered {
			w.Answered++
			w.NetGap = max(w.NetGap, sent.Sub(last).Milliseconds())
			last = sent
		}
	})
}

func (w *watched) forbidden(addr string) {
	for {
		ok := ask(addr, 100*time.Millisecond)
		w.mu.Lock()
		w.Refused++
		if ok {
			w.Forbidden++
		}
		w.mu.Unlock()
		time.Sleep(pace)
	}
}

// ask sends one datagram and says whether it was answered in time.
func ask(addr string, most time.Duration) bool {
	conn, err := net.Dial("udp4", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "watch"); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(most))
	_, err = conn.Read(make([]byte, 64))
	return err == nil
}

// question asks for the A record of example.com, as it is on the wire (RFC 1035).
var question = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")

func (w *watched) names() {
	gateway, err := nameserver()
	check(err)
	last := time.Now()
	steady(func() bool { return resolve(gateway) }, func(sent time.Time, answered bool) {
		if !answered {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.Names++
		w.NameGap = max(w.NameGap, sent.Sub(last).Milliseconds())
		last = sent
	})
}

// nameserver is the first of resolv.conf.
func nameserver() (string, error) {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	var addr string
	if _, err := fmt.Sscanf(string(b), "nameserver %s", &addr); err != nil {
		return "", fmt.Errorf("resolv.conf %q: %w", b, err)
	}
	return net.JoinHostPort(addr, "53"), nil
}

// resolve reports whether the question was answered at all within a second.
func resolve(server string) bool {
	conn, err := net.Dial("udp4", server)
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := conn.Write(question); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	return err == nil && n > 12 && answer[0] == question[0] && answer[1] == question[1]
}

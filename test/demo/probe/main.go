// Command probe is what the demo runs inside environments: a client that
// counts what it reaches, a server to be reached, and a miner's handshake
// without a miner.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: probe udp|tcp|serve|say|count …")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "udp":
		udp(args[0], number(args[1]))
	case "tcp":
		tcp(args[0])
	case "serve":
		serve(args)
	case "say":
		say(args[0], args[1])
	case "count":
		count(args[0])
	case "flood":
		flood(args[0])
	case "dial":
		dial(args)
	case "watch":
		watch(args[0], args[1], args[2:])
	default:
		fail("unknown command " + os.Args[1])
	}
}

// answerTime is how long a probe waits: everything is on one machine.
const answerTime = 300 * time.Millisecond

// udp sends n datagrams to the address, one at a time, and prints how many
// were answered.
func udp(addr string, n int) {
	conn, err := net.Dial("udp4", addr)
	check(err)
	answers := 0
	for i := range n {
		_, err := fmt.Fprintf(conn, "probe %d", i)
		check(err)
		_ = conn.SetReadDeadline(time.Now().Add(answerTime))
		if _, err := conn.Read(make([]byte, 64)); err == nil {
			answers++
		}
	}
	fmt.Printf("answers=%d sent=%d\n", answers, n)
}

// tcp connects once and prints what the server says first.
func tcp(addr string) {
	conn, err := net.DialTimeout("tcp4", addr, 2*time.Second)
	check(err)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = fmt.Fprint(conn, "hello\n")
	check(err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	check(err)
	fmt.Print(line)
}

// serve answers every datagram and greets every connection on each address,
// until killed.
func serve(addrs []string) {
	for _, addr := range addrs {
		pc, err := net.ListenPacket("udp4", addr)
		check(err)
		go echo(pc)
		go serveTCP(addr)
	}
	fmt.Println("serving")
	select {}
}

func echo(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		check(err)
		_, _ = pc.WriteTo(buf[:n], from) // a lost answer is the prober's to count
	}
}

func serveTCP(addr string) {
	l, err := net.Listen("tcp4", addr)
	check(err)
	for {
		conn, err := l.Accept()
		check(err)
		go func() {
			defer conn.Close()
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err == nil {
				fmt.Fprintf(conn, "reached %s %s", conn.LocalAddr(), line)
			}
			time.Sleep(time.Minute)
		}()
	}
}

// say connects, says one line, and stays connected: as a miner does.
func say(addr, line string) {
	conn, err := net.DialTimeout("tcp4", addr, 2*time.Second)
	check(err)
	_, err = fmt.Fprint(conn, strings.TrimSpace(line)+"\n")
	check(err)
	fmt.Println("said", time.Now().UnixNano())
	time.Sleep(time.Hour)
}

// count prints a rising number every 10 ms: a process that must not stop.
func count(until string) {
	for i := range number(until) {
		fmt.Println(i)
		time.Sleep(10 * time.Millisecond)
	}
}

// flood sends a datagram to the address every 10 ms and prints every answer.
func flood(addr string) {
	conn, err := net.Dial("udp4", addr)
	check(err)
	go func() {
		for {
			if _, err := conn.Read(make([]byte, 64)); err == nil {
				fmt.Println("through")
			}
		}
	}()
	for {
		_, _ = conn.Write([]byte("x")) // refused locally is refused
		time.Sleep(10 * time.Millisecond)
	}
}

// dial tries each TCP address once and says of each whether it accepted.
func dial(addrs []string) {
	for _, addr := range addrs {
		conn, err := net.DialTimeout("tcp4", addr, 700*time.Millisecond)
		if err != nil {
			fmt.Println(addr, "closed")
			continue
		}
		fmt.Println(addr, "open")
		_ = conn.Close()
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "probe:", why)
	os.Exit(1)
}

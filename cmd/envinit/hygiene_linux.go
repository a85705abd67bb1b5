package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// sshKeygen makes keys anew in images that have a server's keys and the program.
const sshKeygen = "/usr/bin/ssh-keygen"

// keygenTime bounds the making of one key. A large RSA key takes a second.
const keygenTime = 20 * time.Second

// renew makes the environment's identity its own before anything of the image
// runs. What the node must know is in the error; keys are made anew later.
func (m *services) renew(c *wire.Configure) (keys []string, err error) {
	if c.Hygiene == nil {
		return nil, nil
	}
	name, err := os.Hostname()
	if err == nil {
		keys, err = m.hygiene.renew(*c.Hygiene, name)
	}
	if err != nil {
		return nil, wire.Errorf(wire.CodeState, "what must not be shared with other environments could not be renewed: %v; repair the image, or keep it by the class's hygiene", err)
	}
	return keys, nil
}

// follow gives files with the host's name the one that a claim has set. An
// error is nobody's but the environment's own.
func (m *services) follow() {
	name, err := os.Hostname()
	if err == nil {
		err = m.hygiene.follow(name)
	}
	if err != nil {
		fmt.Fprintf(m.log, "envinit: name this host: %v\n", err)
	}
}

// makeKeys puts new SSH host keys in place of those that were removed, if the
// image can make them. A server that finds none says so itself.
func (m *services) makeKeys(removed []string, variables map[string]string) {
	if _, err := os.Stat(sshKeygen); err != nil {
		return
	}
	for _, path := range removed {
		c, err := m.reaper.spawn(process{
			argv:    []string{sshKeygen, "-q", "-N", "", "-C", "", "-t", keyType(path), "-f", path},
			environ: environ(accountOf(0), variables),
			files:   [3]uintptr{m.null.Fd(), m.null.Fd(), m.null.Fd()},
		})
		if err != nil {
			fmt.Fprintf(m.log, "envinit: make %s: %v\n", path, err)
			continue
		}
		select {
		case <-c.done:
		case <-time.After(keygenTime):
			_ = m.reaper.signal(c, unix.SIGKILL)
			<-c.done
		}
		if code, sig := c.code(); code != 0 || sig != 0 {
			fmt.Fprintf(m.log, "envinit: make %s: code %d, signal %d\n", path, code, sig)
		}
	}
}

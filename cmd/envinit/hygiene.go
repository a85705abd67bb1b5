package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"hearth/internal/guest/wire"
)

// Two environments of one image, or of one snapshot, must not be taken for each
// other: so before anything of the image runs, what identifies a machine is made
// anew or removed. It is done from inside, where every path is the
// environment's own, with the whole file system mounted: whatever an image or a
// parent has put in the way can hurt nobody else.

// seedFiles are what random-number services keep over a reboot. The kernel's
// generator is the node's and needs none; two copies of one seed are no seed.
var seedFiles = []string{
	"var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "var/lib/misc/random-seed",
	"var/lib/seedrng/seed.credit", "var/lib/seedrng/seed.no-credit",
}

// hostKeys are the private and public halves of SSH servers' keys, as glob
// patterns.
var hostKeys = []string{
	"etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_*_key.pub", "etc/ssh/ssh_host_*_key-cert.pub",
	"etc/dropbear/dropbear_*_host_key",
}

// hostsMark ends the line of /etc/hosts that is envinit's.
const hostsMark = "# hearth"

// maxHosts bounds what is read of /etc/hosts, in bytes. A longer one is begun
// anew.
const maxHosts = 64 << 10

// hygiene keeps what identifies the environment its own.
type hygiene struct {
	root string // of the file system; a test's directory, or /

	mu   sync.Mutex // guards all below
	want wire.Hygiene
	name string // in /etc/hostname and /etc/hosts
}

func (h *hygiene) path(name string) string { return filepath.Join(h.root, name) }

// renew does what the node wants, once, before anything of the image runs. It
// returns the private SSH keys that it removed. Files for which the image has
// no directory are left out.
func (h *hygiene) renew(want wire.Hygiene, hostname string) (keys []string, err error) {
	var errs []error
	if want.MachineID {
		errs = append(errs, h.renewMachineID())
	}
	if want.SSHHostKeys {
		keys, err = h.removeHostKeys()
		errs = append(errs, err)
	}
	if want.RandomSeed {
		for _, name := range seedFiles {
			errs = append(errs, gone(os.Remove(h.path(name))))
		}
	}
	h.mu.Lock()
	h.want, h.name = want, ""
	h.mu.Unlock()
	return keys, errors.Join(append(errs, h.follow(hostname))...)
}

// renewMachineID writes a random id (machine-id(5)), where D-Bus looks for it too
// if it has a file of its own.
func (h *hygiene) renewMachineID() error {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	// As a version 4 UUID, which some programs take it for.
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	id := []byte(hex.EncodeToString(b[:]) + "\n")
	if err := h.put("etc/machine-id", id, 0o444); err != nil {
		return err
	}
	const dbus = "var/lib/dbus/machine-id"
	if info, err := os.Lstat(h.path(dbus)); err == nil && info.Mode().IsRegular() {
		return h.put(dbus, id, 0o444)
	}
	return nil // a link to the other, or no D-Bus
}

func (h *hygiene) removeHostKeys() (private []string, err error) {
	var errs []error
	for _, pattern := range hostKeys {
		found, err := filepath.Glob(h.path(pattern))
		errs = append(errs, err)
		for _, path := range found {
			errs = append(errs, gone(os.Remove(path)))
			if strings.HasPrefix(filepath.Base(path), "ssh_host_") && strings.HasSuffix(path, "_key") {
				private = append(private, path)
			}
		}
	}
	return private, errors.Join(errs...)
}

// keyType is the type of ssh_host_<type>_key.
func keyType(path string) string {
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "ssh_host_"), "_key")
}

// follow writes the host's name where programs read it, if it has changed: it
// does so at the claim, without the node's help.
func (h *hygiene) follow(hostname string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if hostname == h.name {
		return nil
	}
	var errs []error
	if h.want.Hostname {
		errs = append(errs, h.tell("etc/hostname", []byte(hostname+"\n")))
	}
	if h.want.Hosts {
		errs = append(errs, h.tell("etc/hosts", hosts(h.present("etc/hosts", maxHosts), hostname)))
	}
	h.name = hostname
	return errors.Join(errs...)
}

// hosts names the host on 127.0.1.1, as Debian does, in place of what an earlier
// environment was called, and leaves all other lines.
func hosts(present []byte, hostname string) []byte {
	if len(present) == 0 {
		present = []byte("127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n")
	}
	var out bytes.Buffer
	for line := range bytes.Lines(present) {
		line = bytes.TrimRight(line, "\n")
		if bytes.HasSuffix(line, []byte(hostsMark)) || slices.Equal(firstField(line), []byte("127.0.1.1")) {
			continue
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "127.0.1.1\t%s %s\n", hostname, hostsMark)
	return out.Bytes()
}

func firstField(line []byte) []byte {
	if fields := bytes.Fields(line); len(fields) > 0 {
		return fields[0]
	}
	return nil
}

// present reads a regular file of at most limit bytes; nil is for any other.
func (h *hygiene) present(name string, limit int64) []byte {
	// It looks first: opening a device may do something.
	if info, err := os.Lstat(h.path(name)); err != nil || !info.Mode().IsRegular() || info.Size() > limit {
		return nil
	}
	f, err := openPlain(h.path(name))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil || int64(len(b)) > limit {
		return nil
	}
	return b
}

// tell gives a file its content: in place once it has been made, because the first
// command after a claim waits for it, and a file that takes another one's place costs
// a disk's time. The caller holds mu.
func (h *hygiene) tell(name string, content []byte) error {
	if h.name != "" && rewrite(h.path(name), content) == nil {
		return nil
	}
	return h.put(name, content, 0o644)
}

// errNotAlone refuses a file that is none, or is another one too.
var errNotAlone = errors.New("no regular file of one name")

// rewrite gives a regular file that has no other name its content.
func rewrite(path string, content []byte) error {
	if info, err := os.Lstat(path); err != nil || !alone(info) { // opening a device may do something
		return errors.Join(errNotAlone, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !alone(info) {
		return errors.Join(errNotAlone, err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(content)))
}

func alone(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 1 && info.Mode().IsRegular()
}

// put replaces a file, whatever lay there, if its directory is there.
func (h *hygiene) put(name string, content []byte, mode os.FileMode) error {
	path := h.path(name)
	f, err := os.CreateTemp(filepath.Dir(path), ".hearth-*")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// gone takes what was not there for removed.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

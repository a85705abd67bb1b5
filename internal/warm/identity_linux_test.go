package warm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

const (
	newName = "box"
	newEnv  = `{"A":"b"}`
)

// look is an error unless the slot has the identity that the test gives it.
func (p *prankster) look() error {
	host, err := os.Hostname()
	b, rerr := os.ReadFile(recallFile)
	var st unix.Stat_t
	if err := errors.Join(err, rerr, unix.Lstat(recallFile, &st)); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if host != newName || string(b) != newEnv || st.Uid != 0 || st.Gid != 0 || st.Mode != unix.S_IFREG|0o600 {
		return fmt.Errorf("%q has %q, %d:%d %o", host, b, st.Uid, st.Gid, st.Mode)
	}
	return nil
}

// The slot's root owns what is written, whatever lay there, and nothing of this
// process is changed by it.
func TestKernelIdentityReplacesWhatLiesThere(t *testing.T) {
	s := startHostileSlot(t)
	if err := s.init.OpenIdentity(env.IDRange{Base: slotIDBase, Size: 65536}); err != nil {
		t.Fatal(err)
	}
	files := []IdentityFile{{EnvJSONFile, 0o600, []byte(newEnv)}}
	home, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, trick := range []string{"clean", "more", "fifo", "socket", "link", "climb", "lease", "link above"} {
		s.play(trick)
		if err := s.init.Personalise(files, newName); err != nil {
			t.Errorf("%s: %v", trick, err)
		}
		if trick == "link above" { // the files are in the tmpfs, wherever that is now
			s.play("clean")
			continue
		}
		s.play("look")
		if b, err := s.recall(); string(b) != newEnv || err != nil {
			t.Errorf("%s: Recall = %q, %v", trick, b, err)
		}
		s.play("clean")
	}
	s.play("directory") // only the slot itself is worse for it
	if err := s.init.Personalise(files, newName); !errors.Is(err, unix.EISDIR) {
		t.Errorf("over a directory: %v", err)
	}
	if now, err := os.Hostname(); now != home || err != nil {
		t.Errorf("this host is called %q now, %v", now, err)
	}
	if uid, err := unix.SetfsuidRetUid(-1); uid != 0 || err != nil {
		t.Errorf("this thread writes as %d, %v", uid, err)
	}
}

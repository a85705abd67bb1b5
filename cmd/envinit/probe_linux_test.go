package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

func TestAFileIsReadyWhenItIsRegularAndHasContentIfThatIsAsked(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("full"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("full", in("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		probe wire.FileProbe
		want  string // of the error; "" is ready
	}{
		"there":                    {wire.FileProbe{Path: in("full")}, ""},
		"there, with content":      {wire.FileProbe{Path: in("full"), NonEmpty: true}, ""},
		"through a link":           {wire.FileProbe{Path: in("link"), NonEmpty: true}, ""},
		"empty":                    {wire.FileProbe{Path: in("empty")}, ""},
		"empty, content asked":     {wire.FileProbe{Path: in("empty"), NonEmpty: true}, "is empty"},
		"missing":                  {wire.FileProbe{Path: in("none")}, "no such file"},
		"a directory":              {wire.FileProbe{Path: dir}, "no regular file"},
		"a fifo that nobody reads": {wire.FileProbe{Path: in("fifo")}, "no regular file"},
	} {
		err := probeFile(&c.probe)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestAProbeHasOneKindAndAnAbsoluteFile(t *testing.T) {
	for name, c := range map[string]struct {
		probe wire.Probe
		good  bool
	}{
		"file":          {wire.Probe{File: &wire.FileProbe{Path: "/run/ready"}}, true},
		"relative file": {wire.Probe{File: &wire.FileProbe{Path: "ready"}}, false},
		"two kinds":     {wire.Probe{TCPPort: 1, File: &wire.FileProbe{Path: "/run/ready"}}, false},
	} {
		if err := checkProbe(c.probe); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hearth/test/stage"
)

// snapshotInfo is what the demo reads of a snapshot.
type snapshotInfo struct {
	ID    string `json:"id"`
	Stats struct {
		Files    string  `json:"files"` // protojson writes 64-bit numbers as strings
		Bytes    string  `json:"bytes"`
		NewBytes string  `json:"newBytes"`
		FreezeMS float64 `json:"freezeMs"`
		Took     string  `json:"took"`
	} `json:"stats"`
}

func (s snapshotInfo) number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64) // "" is absent, and 0
	return n
}

func (s snapshotInfo) took() time.Duration {
	d, _ := time.ParseDuration(s.Stats.Took)
	return d
}

// The tree that is snapshotted: 520 files of 100 KiB, and what file systems
// are odd about.
const fillScript = `set -e
mkdir -p /workspace/tree && cd /workspace/tree
for d in 0 1 2 3 4 5 6 7 8 9; do
  mkdir -p d$d
  for i in $(seq 52); do dd if=/dev/urandom of=d$d/f$i bs=102400 count=1 2>/dev/null; done
done
chown 1000:1000 d1/f1; chmod 4750 d1/f2; chmod 000 d1/f3; ln -s ../d0/f1 d1/link; ln d1/f4 d1/hard
touch -d '2001-02-03 04:05:06' d1/f5; mkfifo d1/fifo; : > 'd1/odd name'
`

// Three edits, an append, a deletion and a file under /etc.
const changeScript = `set -e
cd /workspace/tree
for f in d2/f1 d3/f2 d4/f3; do printf changed | dd of=$f bs=1 seek=5000 conv=notrunc 2>/dev/null; done
echo appended >> d5/f4
rm d6/f5
echo setting=1 > /etc/demo.conf
`

// walkScript prints every entry with all that must come back. Sizes of
// directories are the file system's own.
const walkScript = `set -e
cd /
{ find workspace etc/demo.conf | sort | while read -r f; do
  if [ -d "$f" ]; then stat -c '%n %F %a %u %g %y' "$f"; else stat -c '%n %F %a %u %g %s %Y %h' "$f"; fi
  if [ -L "$f" ]; then readlink "$f"; fi
done; find workspace etc/demo.conf -type f -print0 | sort -z | xargs -0 sha256sum; }
`

func (p *play) takeSnapshot() (snapshotInfo, error) {
	var answer struct {
		Snapshot snapshotInfo `json:"snapshot"`
	}
	err := p.Hearthctl.Decode(&answer, "snapshot", "create", p.a.ID())
	return answer.Snapshot, err
}

func (p *play) snapshot() (string, error) {
	if _, err := p.Hearthctl.Sh(p.a, fillScript); err != nil {
		return "", err
	}
	s, err := p.takeSnapshot()
	if err != nil {
		return "", err
	}
	p.first = s
	files, bytes := s.number(s.Stats.Files), s.number(s.Stats.Bytes)
	if files < 500 || bytes < 50<<20 {
		return "", fmt.Errorf("the snapshot has %d files of %d bytes", files, bytes)
	}
	return fmt.Sprintf("ms=%s freeze_ms=%.2f files=%d bytes=%d new_bytes=%d", ms(s.took()), s.Stats.FreezeMS, files, bytes, s.number(s.Stats.NewBytes)), nil
}

func (p *play) snapshotIncremental() (string, error) {
	if _, err := p.Hearthctl.Sh(p.a, changeScript); err != nil {
		return "", err
	}
	s, err := p.takeSnapshot()
	if err != nil {
		return "", err
	}
	p.latest = s
	if n := s.number(s.Stats.NewBytes); n <= 0 || n > 1<<20 {
		return "", fmt.Errorf("%d new bytes, want more than 0 and at most 1 MiB", n)
	}
	return fmt.Sprintf("ms=%s freeze_ms=%.2f new_bytes=%d", ms(s.took()), s.Stats.FreezeMS, s.number(s.Stats.NewBytes)), nil
}

func (p *play) restore() (string, error) {
	want, err := p.Hearthctl.Sh(p.a, walkScript)
	if err != nil {
		return "", err
	}
	start := time.Now()
	c, err := p.Hearthctl.Claim("--snapshot", p.latest.ID)
	if err != nil {
		return "", err
	}
	took := time.Since(start)
	got, err := p.Hearthctl.Sh(c, walkScript)
	if err != nil {
		return "", err
	}
	if got != want {
		return "", errors.New(firstDifference(want, got))
	}
	if strings.Contains(got, "d6/f5 ") {
		return "", errors.New("the deleted file came back")
	}
	if err := p.release(c); err != nil {
		return "", err
	}
	return fmt.Sprintf("ms=%s entries=%d content=equal owners=equal modes=equal times=equal deletion=kept", ms(took), strings.Count(want, "\n")), nil
}

// firstDifference names the first line that differs.
func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := at(w, i), at(g, i)
		if a != b {
			return fmt.Sprintf("line %d of the walk: want %q, got %q", i+1, a, b)
		}
	}
	return "no difference"
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

func (p *play) fork() (string, error) {
	const copies = 3
	start := time.Now()
	var resp struct {
		Children []stage.Claimed `json:"children"`
	}
	if err := p.Hearthctl.Decode(&resp, "fork", p.a.ID(), "--count", strconv.Itoa(copies), "-e", "GREETING=forked"); err != nil {
		return "", err
	}
	took := time.Since(start)
	if len(resp.Children) != copies {
		return "", fmt.Errorf("%d children, want %d", len(resp.Children), copies)
	}
	for i, c := range resp.Children {
		body, err := c.Get(stage.ServicePort, "/cgi-bin/hello")
		if err != nil || !strings.Contains(body, "forked") {
			return "", fmt.Errorf("the service of child %d answers %q: %w", i, body, err)
		}
		if _, err := p.Hearthctl.Sh(c, fmt.Sprintf("echo %d > /workspace/mine && test -e /workspace/tree/d1/f1", i)); err != nil {
			return "", err
		}
	}
	for i, c := range resp.Children {
		out, err := p.Hearthctl.Sh(c, "cat /workspace/mine")
		if err != nil || out != fmt.Sprintf("%d\n", i) {
			return "", fmt.Errorf("child %d reads %q: %w", i, out, err)
		}
		if err := p.release(c); err != nil {
			return "", err
		}
	}
	if _, err := p.Hearthctl.Sh(p.a, "test ! -e /workspace/mine"); err != nil {
		return "", fmt.Errorf("the parent sees a child's file: %w", err)
	}
	return fmt.Sprintf("children=%d ms=%s service=answered diverged=yes", copies, ms(took)), nil
}

func (p *play) release(c stage.Claimed) error {
	_, err := p.Hearthctl.Run("release", c.ID())
	p.released = append(p.released, c.Environment.Slot, c.ID())
	return err
}

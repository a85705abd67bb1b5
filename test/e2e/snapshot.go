package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// snapshot keeps an environment's files over its release.
func (w *world) snapshot(context.Context) (f facts, err error) {
	c, err := w.claim(w.ctl(), class)
	if err != nil {
		return f, err
	}
	const fill = `mkdir -p /workspace/d /opt/app && for i in $(seq 200); do echo "file $i" > /workspace/d/$i; done && echo kept > /opt/app/state && ln -s state /opt/app/link && chmod 640 /opt/app/state`
	const sums = `cd / && find workspace opt/app -type f | sort | xargs sha256sum | sha256sum; ls -l /opt/app/link | sed 's/.*app/app/'; stat -c '%a %U' /opt/app/state`
	if _, err := w.ctl().Sh(c, fill); err != nil {
		return f, err
	}
	before, err := w.ctl().Sh(c, sums)
	if err != nil {
		return f, err
	}
	begun := time.Now()
	out, err := w.ctl().Run("release", "--snapshot", c.ID())
	if err != nil {
		return f, err
	}
	w.released = append(w.released, c.Environment.Slot)
	f.ms("release_ms", time.Since(begun))
	_, id, ok := strings.Cut(strings.TrimSpace(out), "released, snapshot ")
	if !ok {
		return f, fmt.Errorf("release answered %q", out)
	}
	begun = time.Now()
	back, err := w.claim(w.ctl(), class, "--snapshot", id)
	if err != nil {
		return f, err
	}
	f.ms("restore_ms", time.Since(begun))
	after, err := w.ctl().Sh(back, sums)
	if err != nil {
		return f, err
	}
	if before != after {
		return f, fmt.Errorf("the files differ: %q before, %q after", before, after)
	}
	f.add("files", 202)
	// Another tenant cannot restore it.
	if _, err := w.claim(w.tenants[otherTeam].ctl, class, "--snapshot", id); err == nil {
		return f, fmt.Errorf("another tenant restored %s", id)
	}
	f.add("other_tenant", "refused")
	return f, w.releaseAll(w.ctl(), back)
}

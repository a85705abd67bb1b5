package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// classes changes a class while it is in use, and gives it a wrong one.
func (w *world) classes(ctx context.Context) (f facts, err error) {
	old, err := w.claim(w.ctl(), class)
	if err != nil {
		return f, err
	}
	begun := time.Now()
	if _, err := w.kubectl("patch", "envclass/"+class, "--type=merge", "-p", `{"spec":{"env":{"RELEASE":"two"}}}`); err != nil {
		return f, err
	}
	if err := eventually(ctx, 60*time.Second, func() error {
		c, err := w.claim(w.ctl(), class)
		if err != nil {
			return err
		}
		out, err := w.ctl().Sh(c, "echo $RELEASE")
		if relErr := w.releaseAll(w.ctl(), c); err == nil {
			err = relErr
		}
		if err == nil && out != "two\n" {
			err = fmt.Errorf("a new environment has release %q", out)
		}
		return err
	}); err != nil {
		return f, err
	}
	f.ms("live_ms", time.Since(begun))
	if out, err := w.ctl().Sh(old, "echo [$RELEASE]"); err != nil || out != "[]\n" {
		return f, fmt.Errorf("the old environment changed: %q: %v", out, err)
	}
	// What a schema can refuse it refuses, with a message for people.
	_, err = w.kubectl("patch", "envclass/"+class, "--type=merge", "-p", `{"spec":{"egress":{"mode":"allow"}}}`)
	if err == nil || !strings.Contains(err.Error(), "mode allow needs at least one rule") {
		return f, fmt.Errorf("a wrong egress was answered %v", err)
	}
	f.add("schema", "refused")
	// What it cannot is in the class's condition, and the last good one stays.
	bad := strings.NewReplacer("name: web", "name: bad", "cpu: \"1\"", "cpu: \"0\"").Replace(strings.Split(classManifests, "---")[0])
	if err := w.apply(bad); err != nil {
		return f, err
	}
	if _, err := w.kubectl("wait", "--for=condition=Accepted=false", "envclass/bad", "--timeout=15s"); err != nil {
		return f, err
	}
	why, err := w.kubectl("get", "envclass/bad", "-o", `jsonpath={.status.conditions[?(@.type=="Accepted")].message}`)
	if err != nil || !strings.Contains(why, "cpu") {
		return f, fmt.Errorf("the condition says %q: %v", why, err)
	}
	f.add("condition", "Accepted=false")
	if _, err := w.kubectl("delete", "envclass/bad"); err != nil {
		return f, err
	}
	return f, w.releaseAll(w.ctl(), old)
}

// refused tries what each caller must not do.
func (w *world) refused(ctx context.Context) (f facts, err error) {
	mine, err := w.claim(w.ctl(), class)
	if err != nil {
		return f, err
	}
	other := w.tenants[otherTeam].ctl
	// What is not found is released: that says nothing, and must do nothing.
	if _, err := other.Run("release", mine.ID()); err != nil {
		return f, err
	}
	if out, err := w.ctl().Sh(mine, "echo alive"); err != nil || out != "alive\n" {
		return f, fmt.Errorf("another tenant's release ended it: %q: %v", out, err)
	}
	for name, args := range map[string][]string{
		"get": {"get", mine.ID()}, "exec": {"exec", mine.ID(), "--", "true"}, "pause": {"pause", mine.ID()},
		"claim-for-other": {"claim", "--class", class, "--tenant", team},
	} {
		if out, _, code := other.Try(args...); code == 0 {
			return f, fmt.Errorf("another tenant's %s was answered: %s", name, out)
		}
	}
	f.add("other_tenant", "refused")
	wrongAudience, err := w.kubectl("-n", team, "create", "token", caller, "--audience", "somebody-else")
	if err != nil {
		return f, err
	}
	stranger, err := w.kubectl("-n", "kube-public", "create", "token", "default", "--audience", "hearth")
	if err != nil {
		return f, err
	}
	for name, token := range map[string]string{"audience": wrongAudience, "no-role": stranger, "none": "", "nonsense": "aaaa.bbbb.cccc"} {
		ctl := w.ctl().With("HEARTH_TOKEN=" + strings.TrimSpace(token))
		if out, _, code := ctl.Try("claim", "--class", class); code == 0 {
			return f, fmt.Errorf("a token with %s was answered: %s", name, out)
		}
		f.add("token_"+name, "refused")
	}
	return f, w.releaseAll(w.ctl(), mine)
}

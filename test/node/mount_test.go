package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// shared is a directory that all of the node's environments may see, homes one in
// which each tenant has its own.
func (a *agent) directories(t *testing.T) (shared, homes string) {
	t.Helper()
	shared, homes = a.Path("shared"), a.Path("homes")
	ok(t, errors.Join(os.MkdirAll(filepath.Join(shared, "images"), 0o755), os.MkdirAll(homes, 0o700),
		os.WriteFile(filepath.Join(shared, "images/one"), []byte("of the node"), 0o644)))
	t.Cleanup(func() { ok(t, errors.Join(os.RemoveAll(shared), os.RemoveAll(homes))) })
	return shared, homes
}

func TestNodeAClaimHasDirectoriesOfItsNode(t *testing.T) {
	a := node(t)
	shared, homes := a.directories(t)
	spec := func(tenant string) *hearthv1.ClaimSpec {
		return &hearthv1.ClaimSpec{Class: "web", Tenant: tenant, Mounts: []*hearthv1.Mount{
			{Name: "shared", Directory: "images", Path: "/data/images", ReadOnly: true},
			{Name: "homes", Path: "/home/agent"},
		}}
	}
	one := a.claimSpec(t, spec("acme"))
	if !one.Environment.Warm {
		t.Error("a ready slot would have done")
	}
	out, err := a.Hearthctl.Sh(one, `cat /data/images/one && stat -c ' %U %u' /data/images/one
echo of acme > /home/agent/note && echo 'dev:x:1000:1000::/:/bin/sh' >> /etc/passwd && su dev -c 'cat /data/images/one' >/dev/null && echo seen by all`)
	if err != nil || !strings.Contains(out, "of the node root 0") || !strings.Contains(out, "seen by all") {
		t.Errorf("inside: %q, %v", out, err)
	}
	// Root inside can neither write there nor change that.
	for _, try := range []string{
		"echo x > /data/images/one", "rm /data/images/one", "mount -o remount,rw /data/images", "umount /data/images",
		"mount -o remount,suid,dev /home/agent", "mknod /home/agent/disk b 254 0",
	} {
		if out, err := a.Hearthctl.Sh(one, try); err == nil {
			t.Errorf("%s: %q", try, out)
		}
	}
	// What is left there gains no rights by its mode or kind.
	out, err = a.Hearthctl.Sh(one, "grep -E ' (/data/images|/home/agent) ' /proc/self/mounts")
	if err != nil || strings.Count(out, "nosuid,nodev") != 2 || strings.Count(out, " ro,") != 1 {
		t.Errorf("mounts inside: %q, %v", out, err)
	}
	st, err := os.Stat(filepath.Join(homes, "acme/note"))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("written inside: %+v, %v", st, err)
	}

	// Another tenant has another home, and the same tenant's next environment the same,
	// also when the agent was killed meanwhile.
	other := a.claimSpec(t, spec("umbrella"))
	if out, err := a.Hearthctl.Sh(other, "ls /home/agent"); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("another tenant sees %q, %v", out, err)
	}
	a.kill(t)
	a.up(t)
	if got := a.get(t, one.ID()).GetMounts(); len(got) != 2 || got[1].GetPath() != "/home/agent" {
		t.Errorf("mounts after a restart: %v", got)
	}
	if out, err := a.Hearthctl.Sh(one, "cat /home/agent/note"); err != nil || strings.TrimSpace(out) != "of acme" {
		t.Errorf("after a restart: %q, %v", out, err)
	}
	a.release(t, one)
	a.release(t, other)
	again := a.claimSpec(t, spec("acme"))
	if out, err := a.Hearthctl.Sh(again, "cat /home/agent/note"); err != nil || strings.TrimSpace(out) != "of acme" {
		t.Errorf("the tenant's next environment: %q, %v", out, err)
	}
	a.release(t, again)
	if b, err := os.ReadFile(filepath.Join(shared, "images/one")); err != nil || string(b) != "of the node" {
		t.Errorf("after all: %q, %v", b, err)
	}
}

func TestNodeAMountThatCannotBeIsRefusedByName(t *testing.T) {
	a := node(t)
	a.directories(t)
	for name, c := range map[string]struct {
		class string
		mount *hearthv1.Mount
		want  error
		says  string
	}{
		"the class says no":   {"bare", &hearthv1.Mount{Name: "shared", Path: "/data", ReadOnly: true}, env.ErrDenied, "bare lets claims mount nothing"},
		"it cannot be there":  {"web", &hearthv1.Mount{Name: "shared", Path: "/etc/passwd", ReadOnly: true}, env.ErrInvalid, "/etc/passwd"},
		"it is not writable":  {"web", &hearthv1.Mount{Name: "shared", Path: "/data"}, env.ErrDenied, "read-only"},
		"nobody made it":      {"web", &hearthv1.Mount{Name: "shared", Directory: "films", Path: "/data", ReadOnly: true}, env.ErrNotFound, "films"},
		"it is nobody's home": {"web", &hearthv1.Mount{Name: "homes", Path: "/home"}, env.ErrInvalid, "each tenant has its own directory"},
	} {
		_, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Spec: &hearthv1.ClaimSpec{Class: c.class, Mounts: []*hearthv1.Mount{c.mount}}})
		t.Log(name)
		fails(t, err, c.want, c.says)
	}
}

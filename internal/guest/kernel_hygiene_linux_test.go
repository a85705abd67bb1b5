package guest_test

import (
	"strings"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest/guesttest"
)

// The identity is the machine's own before its first service looks: keys that
// the image has are made anew by its own program, and a name that comes with the
// claim is in the files before the first command sees them.
func TestKernelIdentityIsRenewedBeforeServicesStart(t *testing.T) {
	m := guesttest.Start(t)
	const baked = "0123456789abcdef0123456789abcdef"
	// What images have in them, and something that stands for OpenSSH's program:
	// it is called with -t type and -f path.
	sh(t, m, `mkdir -p /etc/ssh /var/lib/systemd /usr/bin
		echo `+baked+` > /etc/machine-id
		for f in /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ed25519_key.pub /var/lib/systemd/random-seed; do echo baked > $f; done
		cat > /usr/bin/ssh-keygen <<'END'
#!/bin/sh
sleep 0.3
while [ $# -gt 0 ]; do case $1 in -t) t=$2;; -f) f=$2;; esac; shift; done
echo "own $t" > "$f"
END
		chmod 755 /usr/bin/ssh-keygen`)
	configure(t, m, &env.Class{
		Services:  []env.Service{{Name: "sshd", Command: []string{"sh", "-c", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key > /tmp/seen; exec sleep 1000"}}},
		Readiness: env.Probe{File: &env.FileProbe{Path: "/tmp/seen", NonEmpty: true}},
	})
	if err := m.Client.AwaitReady(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	seen := sh(t, m, "cat /tmp/seen")
	if strings.Contains(seen, baked) || !strings.HasSuffix(seen, "\nown ed25519") {
		t.Errorf("the first service saw %q", seen)
	}
	if got := sh(t, m, "ls -A /etc/ssh /var/lib/systemd"); strings.Contains(got, ".pub") || strings.Contains(got, "random-seed") {
		t.Errorf("left of the image: %q", got)
	}
}

func TestKernelWhatTheClassKeepsStays(t *testing.T) {
	m := guesttest.Start(t)
	const baked = "0123456789abcdef0123456789abcdef"
	sh(t, m, "echo "+baked+" > /etc/machine-id")
	configure(t, m, &env.Class{Hygiene: env.HygienePolicy{Keep: []env.Trait{env.TraitMachineID}}})
	if err := m.Client.AwaitReady(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, m, "cat /etc/machine-id"); got != baked {
		t.Errorf("machine id = %q", got)
	}
}

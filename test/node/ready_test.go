package node

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// says runs a script in an environment and returns its output.
func (a *agent) says(t *testing.T, c stage.Claimed, script string) string {
	t.Helper()
	out, err := a.Hearthctl.Sh(c, script)
	ok(t, err)
	return strings.TrimSpace(out)
}

// beginClass gives the agent one more class until the test ends, and waits for
// its pool.
func (a *agent) beginClass(t *testing.T, name, spec string) {
	t.Helper()
	a.write(t, "classes/"+name+".yaml", manifest(name, spec))
	a.hangup(t)
	t.Cleanup(func() {
		ok(t, os.Remove(a.Path("classes/"+name+".yaml")))
		a.hangup(t)
		eventually(t, 30*time.Second, func() error {
			inv, err := a.Node.Inventory(context.Background(), &hearthv1.InventoryRequest{})
			for _, p := range inv.GetPools() {
				if p.GetClass() == name {
					return fmt.Errorf("pool %v", p)
				}
			}
			return err
		})
	})
	eventually(t, 30*time.Second, func() error {
		if a.pool(t, name) == nil {
			return fmt.Errorf("class %s is not there yet", name)
		}
		return nil
	})
	a.poolFull(t)
}

// series is the value of one of the agent's metrics, 0 if there is none yet.
func (a *agent) series(t *testing.T, name string) (value float64) {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", a.port+1))
	ok(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), name+" "); found {
			_, err := fmt.Sscan(rest, &value)
			ok(t, err)
		}
	}
	ok(t, lines.Err())
	return value
}

func TestNodeClaimsAndForksShareNoIdentity(t *testing.T) {
	a := node(t)
	one, two := a.claim(t, "web"), a.claim(t, "web")
	names := func(c stage.Claimed) {
		t.Helper()
		if got := a.says(t, c, "cat /etc/hostname"); got != c.ID() {
			t.Errorf("/etc/hostname of %s = %q", c.ID(), got)
		}
		want := "127.0.0.1\tlocalhost\n127.0.1.1\t" + c.ID() + " # hearth"
		if got := a.says(t, c, "cat /etc/hosts"); got != want {
			t.Errorf("/etc/hosts of %s = %q, want %q", c.ID(), got, want)
		}
	}
	const id = "cat /etc/machine-id"
	names(one)
	names(two)
	first := a.says(t, one, id)
	if other := a.says(t, two, id); len(first) != 32 || first == other {
		t.Errorf("machine ids %q and %q", first, other)
	}
	a.release(t, two)

	a.says(t, one, `mkdir -p /etc/ssh /var/lib/systemd
		for f in /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ed25519_key.pub /var/lib/systemd/random-seed; do echo mine > $f; done
		echo kept > /etc/ssh/sshd_config; echo "192.0.2.9 db" >> /etc/hosts`)
	forked, err := a.Node.Fork(t.Context(), &hearthv1.NodeForkRequest{Environment: one.ID(), Children: []*hearthv1.NodeClaimRequest{{}}})
	ok(t, err)
	child := claimed(forked.GetChildren()[0])
	const files = "ls -A /etc/ssh /var/lib/systemd; " + id
	got := a.says(t, child, files)
	if strings.Contains(got, "ssh_host") || strings.Contains(got, "random-seed") || !strings.Contains(got, "sshd_config") || strings.Contains(got, first) {
		t.Errorf("a fork has of its parent, whose machine id is %s:\n%s", first, got)
	}
	hosts := a.says(t, child, "cat /etc/hosts")
	if strings.Contains(hosts, one.ID()) || !strings.Contains(hosts, "192.0.2.9 db\n127.0.1.1\t"+child.ID()) {
		t.Errorf("/etc/hosts of a fork = %q", hosts)
	}
	a.release(t, child)

	// One that comes back is the same machine.
	before := a.says(t, one, files)
	a.release(t, one)
	back, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{Environment: one.ID(), Generation: 2,
		Spec: &hearthv1.ClaimSpec{Class: "web", Snapshot: forked.GetSnapshot().GetId()}})
	ok(t, err)
	if after := a.says(t, claimed(back), files); after != before {
		t.Errorf("it came back with\n%s\nand had\n%s", after, before)
	}
	a.release(t, claimed(back))
}

func TestNodeAReadySlotWhoseServiceDiedIsReplacedAndCounted(t *testing.T) {
	a := node(t)
	// Its service ends by itself a moment after it was seen ready, and is not
	// started again: the slot is frozen before, and dies at its first check.
	a.beginClass(t, "mortal", `  image: hearth.local/busybox:1
  services:
  - name: web
    command: [sh, -c, "echo up > /run/up; sleep 0.3; rm /run/up"]
    restart: never
  readiness: {file: {path: /run/up, nonEmpty: true}}
  resources: {memory: 64Mi}
  warm: {slots: 1, checkEvery: 1s}
`)
	dead := func() float64 { return a.series(t, `hearth_slots_dead_total{class="mortal",reason="readiness"}`) }
	first := a.pool(t, "mortal")
	eventually(t, 30*time.Second, func() error {
		if got := dead(); got < 2 {
			return fmt.Errorf("%v slots were counted as dead, pool %v", got, first)
		}
		return nil
	})
	log, err := os.ReadFile(a.Path("agent.log"))
	ok(t, err)
	holds(t, string(log), "it is not ready any more", "probe of file", "/run/up")
}

func TestNodeReadySlotsAreProbedAndClaimedWhileTheyAre(t *testing.T) {
	a := node(t)
	a.beginClass(t, "checked", `  image: hearth.local/busybox:1
  services:
  - name: web
    command: [httpd, -f, -p, "8000", -h, /etc]
  readiness: {http: {port: 8000, path: /hosts}}
  resources: {memory: 64Mi}
  warm: {slots: 2, checkEvery: 1s}
`)
	passed := `hearth_slot_checks_total{class="checked",result="passed"}`
	eventually(t, 30*time.Second, func() error {
		if got := a.series(t, passed); got < 6 {
			return fmt.Errorf("%v checks passed", got)
		}
		return nil
	})
	if got := a.series(t, `hearth_slots_dead_total{class="checked",reason="readiness"}`); got != 0 {
		t.Errorf("%v healthy slots were counted as dead", got)
	}
	for range 20 { // whether one is in a check or not
		resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "checked"}})
		ok(t, err)
		c := claimed(resp)
		a.alive(t, c)
		a.release(t, c)
		a.poolFull(t)
	}
}

// Where slots cannot be deflated, as in the hybrid layout of cgroups, the class
// serves as ever, and its pool says why. In the VM they can be.
func TestNodeDeflatesReadySlotsOrSaysWhyNot(t *testing.T) {
	a := node(t)
	a.beginClass(t, "thin", `  image: hearth.local/busybox:1
  resources: {memory: 64Mi}
  warm: {slots: 1, deflate: true}
`)
	eventually(t, 30*time.Second, func() error {
		message := a.pool(t, "thin").GetMessage()
		deflated := a.series(t, `hearth_slot_deflation_bytes_count{class="thin",moment="after"}`)
		if deflated == 0 && os.Getenv("HEARTH_VM") != "" {
			return fmt.Errorf("nothing is deflated, and the pool says %q", message)
		}
		if deflated == 0 && !strings.Contains(message, "slots are not deflated: warm.deflate is not available on this node: needs ") {
			return fmt.Errorf("%v deflations, and the pool says %q", deflated, message)
		}
		return nil
	})
	resp, err := a.Node.Claim(t.Context(), &hearthv1.NodeClaimRequest{WarmOnly: true, Spec: &hearthv1.ClaimSpec{Class: "thin"}})
	ok(t, err)
	a.alive(t, claimed(resp))
	a.release(t, claimed(resp))
}

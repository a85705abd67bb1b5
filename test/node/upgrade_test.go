package node

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// rolled is a class whose service and variables say which release they are of.
func rolled(image, release string) string {
	return fmt.Sprintf(`  image: %s
  env: {RELEASE: %s}
  services:
  - name: web
    command: [sh, -c, "mkdir -p /srv; echo %s > /srv/index.html; exec httpd -f -p 8000 -h /srv"]
  - name: late
    command: [sh, -c, ". /run/hearth/env; echo $GREETING > /tmp/late; exec sleep 1000000"]
    start: afterClaim
  readiness: {http: {port: 8000, path: /index.html}}
  resources: {memory: 64Mi}
  ports: [{name: web, port: 8000, protocol: http}]
`, image, release, release)
}

const (
	firstImage  = "hearth.local/busybox:1"
	secondImage = "hearth.local/busybox:2"
)

// newRelease gives the class another release, and waits until the environment is
// outdated.
func (a *agent) newRelease(t *testing.T, c stage.Claimed, image, release string) {
	t.Helper()
	a.write(t, "classes/rolled.yaml", manifest("rolled", rolled(image, release)))
	a.hangup(t)
	eventually(t, 10*time.Second, func() error {
		if e := a.get(t, c.ID()); !e.GetOutdated() {
			return fmt.Errorf("environment %s of revision %s is not outdated", e.GetId(), e.GetRevision())
		}
		return nil
	})
}

// upgraded is what the claimed environment has become.
func (a *agent) upgraded(t *testing.T, c stage.Claimed) stage.Claimed {
	t.Helper()
	e := a.get(t, c.ID())
	c.Environment.Slot, c.Environment.PID, c.Environment.Address = e.GetSlot(), int(e.GetPid()), e.GetAddress()
	return c
}

// serves compares what the environment's services and processes say.
func (a *agent) serves(t *testing.T, c stage.Claimed, release string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error { // the late service starts beside the answer
		out, err := a.Hearthctl.Sh(c, `wget -qO- http://127.0.0.1:8000/index.html; echo $RELEASE $GREETING $(cat /tmp/late)`)
		if want := release + "\n" + release + " hello hello"; err != nil || strings.TrimSpace(out) != want {
			return fmt.Errorf("it says %q, %w, want %q", out, err, want)
		}
		return nil
	})
}

func (a *agent) fileSays(t *testing.T, c stage.Claimed, path, want string) {
	t.Helper()
	if out, err := a.Hearthctl.Sh(c, "cat "+path+" 2>/dev/null || echo none"); err != nil || strings.TrimSpace(out) != want {
		t.Errorf("%s of %s is %q, %v, want %q", path, c.ID(), out, err, want)
	}
}

func TestNodeAnEnvironmentMovesToItsClassesNewReleaseWithItsState(t *testing.T) {
	a := node(t)
	a.beginClass(t, "rolled", rolled(firstImage, "one"))
	c := a.claim(t, "rolled", "--env", "GREETING=hello", "--ttl", "2h", "-l", "team=red")
	before := a.get(t, c.ID())
	a.serves(t, c, "one")
	_, err := a.Hearthctl.Sh(c, "echo root > /root/file; echo work > /workspace/file; rm -f /tmp/late")
	ok(t, err)
	_, err = a.Node.Upgrade(t.Context(), &hearthv1.NodeUpgradeRequest{Environment: c.ID()})
	fails(t, err, env.ErrState, c.ID(), "newest release")
	a.alive(t, c)

	a.newRelease(t, c, firstImage, "two")
	req := &hearthv1.NodeUpgradeRequest{IdempotencyKey: "key-" + t.Name(), Environment: c.ID()}
	begun := time.Now()
	resp, err := a.Node.Upgrade(t.Context(), req)
	ok(t, err)
	t.Log("took", time.Since(begun))
	a.forget(c.Environment.Slot)
	first, after := c, resp.GetEnvironment()
	c = a.upgraded(t, c)
	if after.GetRevision() == before.GetRevision() || after.GetOutdated() || after.GetSlot() == before.GetSlot() ||
		after.GetGeneration() != before.GetGeneration() || after.GetLabels()["team"] != "red" ||
		!after.GetExpiresAt().AsTime().Equal(before.GetExpiresAt().AsTime()) || !after.GetClaimedAt().AsTime().Equal(before.GetClaimedAt().AsTime()) {
		t.Errorf("environment before %v\nafter %v", before, after)
	}
	a.alive(t, c)
	a.serves(t, c, "two")
	a.fileSays(t, c, "/root/file", "root")
	a.fileSays(t, c, "/workspace/file", "work")
	// The token of its claim is valid, and its port is reached by it.
	if page, err := first.Get(8000, "/index.html"); err != nil || strings.TrimSpace(page) != "two" {
		t.Errorf("by the token of the claim: %q, %v", page, err)
	}
	a.kill(t)
	a.up(t)
	a.alive(t, c)
	again, err := a.Node.Upgrade(t.Context(), req)
	ok(t, err)
	if again.GetEnvironment().GetSlot() != after.GetSlot() || again.GetSnapshot().GetId() != resp.GetSnapshot().GetId() {
		t.Errorf("repeated, it is answered %v, was %v", again, resp)
	}

	// One that is paused stays so, with its late service started.
	a.newRelease(t, c, firstImage, "three")
	_, err = a.Hearthctl.Sh(c, "rm /tmp/late")
	ok(t, err)
	_, err = a.Hearthctl.Run("pause", c.ID())
	ok(t, err)
	a.forget(c.Environment.Slot)
	out, err := a.Hearthctl.Run("upgrade", c.ID())
	ok(t, err)
	holds(t, out, c.ID()+" upgraded to ", "snapshot "+c.ID()+"/")
	c = a.upgraded(t, c)
	if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_PAUSED || !a.frozen(t, c) {
		t.Errorf("paused before its upgrade, it is %s", e.GetPhase())
	}
	_, err = a.Hearthctl.Run("resume", c.ID())
	ok(t, err)
	a.serves(t, c, "three")
	a.release(t, c)
}

func TestNodeAnotherImageTakesTheWorkspaceOnly(t *testing.T) {
	a := node(t)
	out, code := a.nodeagent("image", "import", another(t, a))
	if code != 0 {
		t.Fatalf("image import: exit %d: %s", code, out)
	}
	a.beginClass(t, "rolled", rolled(firstImage, "one"))
	c := a.claim(t, "rolled", "--env", "GREETING=hello")
	_, err := a.Hearthctl.Sh(c, "echo root > /root/file; echo work > /workspace/file")
	ok(t, err)
	a.newRelease(t, c, secondImage, "two")
	a.refused(t, 2, []string{c.ID(), "lies on image sha256:", "has sha256:", "--keep workspace"}, "upgrade", c.ID())
	a.alive(t, c)
	a.fileSays(t, c, "/root/file", "root")
	resp, err := a.Node.Upgrade(t.Context(), &hearthv1.NodeUpgradeRequest{Environment: c.ID(), Keep: hearthv1.Keep_KEEP_WORKSPACE})
	ok(t, err)
	a.forget(c.Environment.Slot)
	c = a.upgraded(t, c)
	a.alive(t, c)
	a.serves(t, c, "two")
	a.fileSays(t, c, "/root/file", "none")
	a.fileSays(t, c, "/workspace/file", "work")
	// What it was is in a snapshot, and what it is now in the next one.
	_, err = a.Hearthctl.Sh(c, "echo new > /root/file")
	ok(t, err)
	snap, err := a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})
	ok(t, err)
	for class, want := range map[string][2]string{
		"bare":   {resp.GetSnapshot().GetId(), "root"}, // of the first image
		"rolled": {snap.GetSnapshot().GetId(), "new"},
	} {
		back := a.claim(t, class, "--snapshot", want[0])
		a.fileSays(t, back, "/root/file", want[1])
		a.fileSays(t, back, "/workspace/file", "work")
		a.release(t, back)
	}
	a.release(t, c)
}

// However far an upgrade has come when its agent is killed, there is one
// environment, and it runs.
func TestNodeAnAgentKilledDuringAnUpgradeLeavesOneEnvironment(t *testing.T) {
	a := node(t)
	a.beginClass(t, "rolled", rolled(firstImage, "r0"))
	c := a.claim(t, "rolled", "--env", "GREETING=hello")
	_, err := a.Hearthctl.Sh(c, "echo root > /root/file; echo work > /workspace/file")
	ok(t, err)
	release, done := "r0", 0
	for round := 1; round <= 6; round++ {
		next := fmt.Sprint("r", round)
		a.newRelease(t, c, firstImage, next)
		ended := make(chan error, 1)
		go func() {
			_, err := a.Node.Upgrade(context.Background(), &hearthv1.NodeUpgradeRequest{IdempotencyKey: "key-" + next, Environment: c.ID()})
			ended <- err
		}()
		time.Sleep(time.Duration(round) * 80 * time.Millisecond)
		a.kill(t)
		answered := <-ended
		a.up(t)
		e := a.get(t, c.ID())
		if !e.GetOutdated() {
			a.forget(c.Environment.Slot)
			release = next
			done++
		} else if answered == nil {
			t.Errorf("round %d: answered, and it is of %s", round, e.GetRevision())
		}
		c = a.upgraded(t, c)
		a.alive(t, c)
		a.fileSays(t, c, "/root/file", "root")
		a.fileSays(t, c, "/workspace/file", "work")
		if out, err := a.Hearthctl.Sh(c, "cat /srv/index.html; echo $GREETING"); err != nil || strings.TrimSpace(out) != release+"\nhello" {
			t.Errorf("round %d: it says %q, %v, want %s", round, out, err, release)
		}
		if !e.GetOutdated() {
			continue
		}
		resp, err := a.Node.Upgrade(t.Context(), &hearthv1.NodeUpgradeRequest{IdempotencyKey: "key-" + next, Environment: c.ID()})
		ok(t, err)
		a.forget(c.Environment.Slot)
		release, c = next, a.upgraded(t, c)
		if resp.GetEnvironment().GetSlot() != c.Environment.Slot {
			t.Errorf("round %d: answered %v", round, resp)
		}
	}
	t.Log(done, "of 6 were done when the agent was killed")
	a.release(t, c)
}

// another writes the stage's image with another configuration, and so another
// digest, under another name.
func another(t *testing.T, a *agent) string {
	t.Helper()
	files := map[string][]byte{}
	in, err := os.Open(a.Image())
	ok(t, err)
	defer in.Close()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		ok(t, err)
		if h.Typeflag == tar.TypeReg {
			files[h.Name], err = io.ReadAll(r)
			ok(t, err)
		}
	}
	// edit replaces a described blob by its changed self.
	edit := func(descriptor map[string]any, change func(map[string]any)) {
		name := func() string { return "blobs/" + strings.Replace(descriptor["digest"].(string), ":", "/", 1) }
		var blob map[string]any
		ok(t, json.Unmarshal(files[name()], &blob))
		delete(files, name())
		change(blob)
		b, err := json.Marshal(blob)
		ok(t, err)
		sum := sha256.Sum256(b)
		descriptor["digest"], descriptor["size"] = "sha256:"+hex.EncodeToString(sum[:]), len(b)
		files[name()] = b
	}
	var index map[string]any
	ok(t, json.Unmarshal(files["index.json"], &index))
	top := index["manifests"].([]any)[0].(map[string]any)
	edit(top, func(manifest map[string]any) {
		edit(manifest["config"].(map[string]any), func(config map[string]any) { config["author"] = "another" })
	})
	top["annotations"] = map[string]any{"io.containerd.image.name": secondImage, "org.opencontainers.image.ref.name": secondImage}
	index["manifests"] = []any{top}
	files["index.json"], err = json.Marshal(index)
	ok(t, err)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, b := range files {
		ok(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg}))
		_, err := w.Write(b)
		ok(t, err)
	}
	ok(t, w.Close())
	a.write(t, "another.tar", out.String())
	return a.Path("another.tar")
}

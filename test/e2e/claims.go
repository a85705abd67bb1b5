package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// claimAPI claims as a backend does, and sees the object that it made.
func (w *world) claimAPI(ctx context.Context) (f facts, err error) {
	begun := time.Now()
	c, err := w.claim(w.ctl(), class, "-e", "GREETING=hello")
	if err != nil {
		return f, err
	}
	f.ms("command_ms", time.Since(begun))
	f.ms("node_ms", c.Duration())
	f.add("warm", c.Environment.Warm)
	w.kept = c
	if err := eventually(ctx, 10*time.Second, func() error {
		o, err := w.environment(ctx, team, c.ID())
		if err != nil {
			return err
		}
		if field(o, "status", "phase") != "running" || field(o, "spec", "placement", "nodeName") == "" {
			return fmt.Errorf("phase %q on node %q", field(o, "status", "phase"), field(o, "spec", "placement", "nodeName"))
		}
		if s := fmt.Sprint(o.Object); strings.Contains(s, "GREETING") || strings.Contains(s, c.Access.Token) {
			return errors.New("the object holds the claim's variables or its token")
		}
		f.add("object", o.GetName() == c.ID())
		return nil
	}); err != nil {
		return f, err
	}
	out, err := w.ctl().Sh(c, "echo $GREETING")
	if err != nil || out != "hello\n" {
		return f, fmt.Errorf("the variable inside is %q: %v", out, err)
	}
	// An ephemeral claim writes no object.
	e, err := w.claim(w.ctl(), fleeting)
	if err != nil {
		return f, err
	}
	if _, err := w.environment(ctx, team, e.ID()); !apierrors.IsNotFound(err) {
		return f, fmt.Errorf("the ephemeral environment has an object: %v", err)
	}
	f.add("ephemeral", "no-object")
	return f, w.releaseAll(w.ctl(), e)
}

const environmentManifest = `
apiVersion: hearth.run/v1alpha1
kind: Environment
metadata: {name: %s, namespace: %s, labels: {purpose: e2e}}
spec: {class: %s, variables: {GREETING: hi}}
`

// claimCRD is kubectl apply, wait, use, a refused change, and delete.
func (w *world) claimCRD(ctx context.Context) (f facts, err error) {
	begun := time.Now()
	if err := w.apply(fmt.Sprintf(environmentManifest, "sandbox", team, class)); err != nil {
		return f, err
	}
	if _, err := w.kubectl("-n", team, "wait", "--for=condition=Ready", "env/sandbox", "--timeout=30s"); err != nil {
		return f, err
	}
	f.ms("ready_ms", time.Since(begun))
	out, err := w.kubectl("-n", team, "get", "env")
	if err != nil {
		return f, err
	}
	if !strings.Contains(out, "sandbox") || !strings.Contains(out, "running") {
		return f, fmt.Errorf("kubectl get env: %s", out)
	}
	o, err := w.environment(ctx, team, "sandbox")
	if err != nil {
		return f, err
	}
	id := field(o, "status", "id")
	hello, err := w.ctl().Run("exec", id, "--", "sh", "-c", "echo $GREETING")
	if err != nil || hello != "hi\n" {
		return f, fmt.Errorf("exec in %s: %q: %v", id, hello, err)
	}
	_, err = w.kubectl("-n", team, "patch", "env/sandbox", "--type=merge", "-p", `{"spec":{"class":"tool"}}`)
	if err == nil || !strings.Contains(err.Error(), "class cannot be changed") {
		return f, fmt.Errorf("changing the class was answered %v", err)
	}
	f.add("immutable", "refused")
	begun = time.Now()
	if _, err := w.kubectl("-n", team, "delete", "env/sandbox", "--timeout=30s"); err != nil {
		return f, err
	}
	f.ms("deleted_ms", time.Since(begun))
	if _, stderr, code := w.ctl().Try("exec", id, "--", "true"); code == 0 {
		return f, fmt.Errorf("it still runs after its object was deleted: %s", stderr)
	}
	return f, nil
}

func (w *world) exec(context.Context) (f facts, err error) {
	out, stderr, code := w.ctl().Try("exec", w.kept.ID(), "--", "sh", "-c", "echo to-stdout; echo to-stderr >&2; exit 7")
	if out != "to-stdout\n" || !strings.Contains(stderr, "to-stderr") || code != 7 {
		return f, fmt.Errorf("stdout %q stderr %q exit %d", out, stderr, code)
	}
	begun := time.Now()
	if _, err := w.ctl().Run("exec", w.kept.ID(), "--", "true"); err != nil {
		return f, err
	}
	f.ms("command_ms", time.Since(begun))
	f.add("exit", code)
	return f, nil
}

func (w *world) files(context.Context) (f facts, err error) {
	src, dst := filepath.Join(w.scratch, "out.bin"), filepath.Join(w.scratch, "in.bin")
	content := strings.Repeat("a file that is moved\n", 50_000)
	if err := writeFile(src, content); err != nil {
		return f, err
	}
	begun := time.Now()
	if _, err := w.ctl().Run("cp", src, w.kept.ID()+":/workspace/file"); err != nil {
		return f, err
	}
	if _, err := w.ctl().Run("cp", w.kept.ID()+":/workspace/file", dst); err != nil {
		return f, err
	}
	back, err := os.ReadFile(dst)
	if err != nil || string(back) != content {
		return f, fmt.Errorf("%d bytes came back of %d: %v", len(back), len(content), err)
	}
	f.ms("both_ways_ms", time.Since(begun))
	f.add("bytes", len(content))
	return f, nil
}

// ports asks a service inside with curl, by the claim's access.
func (w *world) ports(context.Context) (f facts, err error) {
	ca := filepath.Join(w.scratch, "access.crt")
	if err := writeFile(ca, string(w.kept.Access.CAPEM)); err != nil {
		return f, err
	}
	url := fmt.Sprintf("https://%s/ports/%s/8000/index.html", w.kept.Access.Address, w.kept.ID())
	begun := time.Now()
	out, err := output(exec.Command("curl", "-sS", "--fail", "--max-time", "5", "--cacert", ca, "-H", "Authorization: Bearer "+w.kept.Access.Token, url))
	if err != nil || out != "ready\n" {
		return f, fmt.Errorf("curl says %q: %v", out, err)
	}
	f.ms("curl_ms", time.Since(begun))
	if out, err := output(exec.Command("curl", "-sS", "--fail", "--max-time", "5", "--cacert", ca, "-H", "Authorization: Bearer wrong", url)); err == nil {
		return f, fmt.Errorf("a wrong token was answered %q", out)
	}
	f.add("wrong_token", "refused")
	return f, nil
}

// release lets everything go and compares the nodes with what they were.
func (w *world) release(ctx context.Context) (f facts, err error) {
	begun := time.Now()
	if err := w.releaseAll(w.ctl(), w.kept); err != nil {
		return f, err
	}
	f.ms("command_ms", time.Since(begun))
	if err := eventually(ctx, 20*time.Second, func() error {
		if _, err := w.environment(ctx, team, w.kept.ID()); !apierrors.IsNotFound(err) {
			return fmt.Errorf("its object is there: %v", err)
		}
		return nil
	}); err != nil {
		return f, err
	}
	if err := w.poolsFull(ctx, 60*time.Second); err != nil {
		return f, err
	}
	left, err := w.nothingLeft(ctx)
	f.add("left", left)
	return f, err
}

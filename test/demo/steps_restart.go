package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hearth/test/stage"
)

// agentRestart kills the agent with SIGKILL while a command runs and a
// forbidden address is probed every 10 ms, and starts a new one.
func (p *play) agentRestart() (string, error) {
	pid1 := startTime(p.a.Environment.PID)
	held := p.Hearthctl.Command("exec", p.a.ID(), "--", "sh", "-c", "exec probe count 100000 > /tmp/count")
	if err := held.Start(); err != nil {
		return "", err
	}
	defer func() {
		_ = held.Process.Kill()
		_ = held.Wait()
	}()
	if _, err := p.Hearthctl.Sh(p.a, "setsid probe flood "+stage.MetadataAddress+":"+stage.ProbePort+" > /tmp/through 2>&1 & true"); err != nil {
		return "", err
	}
	before, err := p.counter(1)
	if err != nil {
		return "", err
	}
	sent, err := p.Node.Drops(p.a.ID(), "metadata")
	if err != nil {
		return "", err
	}
	old, err := p.PID("agent")
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		return "", err
	}
	time.Sleep(500 * time.Millisecond) // nobody is there
	start := time.Now()
	if err := p.StartAgent(); err != nil {
		return "", err
	}
	if err := stage.Eventually(60*time.Second, func() error { _, err := p.Node.Pool(); return err }); err != nil {
		return "", err
	}
	down := time.Since(start)
	if now := startTime(p.a.Environment.PID); pid1 == "" || now != pid1 {
		return "", fmt.Errorf("init started at %s, before the restart at %s", now, pid1)
	}
	after, err := p.counter(before + 50)
	if err != nil {
		return "", fmt.Errorf("the held command: %w", err)
	}
	through, err := p.Hearthctl.Sh(p.a, "cat /tmp/through; pkill probe; true")
	if err != nil {
		return "", err
	}
	if n := strings.Count(through, "\n"); n != 0 {
		return "", fmt.Errorf("%d forbidden probes were answered: %.200q", n, through)
	}
	// The kernel has counted on meanwhile: the probes really were sent.
	probes, err := p.Node.Drops(p.a.ID(), "metadata")
	if err != nil {
		return "", err
	}
	if probes -= sent; probes < 50 {
		return "", fmt.Errorf("only %d forbidden probes were sent", probes)
	}
	var c stage.Claimed
	if err := stage.Eventually(10*time.Second, func() (err error) { c, err = p.Hearthctl.Claim(); return err }); err != nil {
		return "", fmt.Errorf("claim after the restart: %w", err)
	}
	if err := p.release(c); err != nil {
		return "", err
	}
	return fmt.Sprintf("start_ms=%s pid1=same counted=%d forbidden_probes=%d through=0 claim=ok", ms(down), after-before, probes), nil
}

// counter waits until the held command has counted to at least n.
func (p *play) counter(n int) (last int, err error) {
	err = stage.Eventually(10*time.Second, func() error {
		out, err := p.Hearthctl.Sh(p.a, "tail -n 1 /tmp/count")
		if err != nil {
			return err
		}
		if last, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
			return fmt.Errorf("it wrote %q", out)
		}
		if last < n {
			return fmt.Errorf("it stands at %d, want %d", last, n)
		}
		return nil
	})
	return last, err
}

// startTime is field 22 of /proc/<pid>/stat; "" if there is no such process.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[19]
}

// releaseClean releases what is left and compares the node with what it was
// before the first claim.
func (p *play) releaseClean() (string, error) {
	start := time.Now()
	for _, c := range []stage.Claimed{p.miner, p.b, p.a} {
		if err := p.release(c); err != nil {
			return "", err
		}
	}
	took := time.Since(start) / 3
	var diff string
	err := stage.Eventually(60*time.Second, func() error {
		if _, err := p.Node.PoolFull(0); err != nil {
			return err
		}
		if diff = stage.Compare(p.clean, p.TakeInventory(), p.released); diff != "" {
			return fmt.Errorf("left: %s", diff)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("release_ms=%s released=%d compared=%d left=0", ms(took), len(p.released)/2, p.clean.Count()), nil
}

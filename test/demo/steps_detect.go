package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"

	"hearth/test/stage"
)

// The first line that a miner says to its pool, and one of the same shape that
// no miner says.
const (
	minerLine = `{"id": 1, "method": "mining.subscribe", "params": ["x/1.0"]}`
	pingLine  = `{"id": 1, "method": "ping", "params": ["x/1.0"]}`
)

func (p *play) minerDetected() (string, error) {
	var err error
	if p.miner, err = p.Hearthctl.Claim(); err != nil {
		return "", err
	}
	const renamed = "/usr/bin/python3"
	if err := p.install(p.miner, renamed); err != nil {
		return "", err
	}
	// Anywhere in 45.0.0.0/8, all of it public, and on any port.
	host := fmt.Sprintf("45.%d.%d.%d", rand.IntN(256), rand.IntN(256), 1+rand.IntN(254))
	if err := p.AddInternetAddress(host); err != nil {
		return "", err
	}
	pool := fmt.Sprintf("%s:%d", host, 20000+rand.IntN(40000))
	if err := p.StartServer("pool-server", "internet", pool); err != nil {
		return "", err
	}
	if err := p.quietPing(renamed, pool); err != nil {
		return "", err
	}
	// The command blocks until the environment is released: it is frozen.
	cmd := p.Hearthctl.Command("exec", p.miner.ID(), "--", renamed, "say", pool, minerLine)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	go func() { _ = cmd.Wait() }()
	var d *hearthv1.Detection
	if err := stage.Eventually(5*time.Second, func() (err error) {
		d, err = p.miningAlert()
		return err
	}); err != nil {
		return "", err
	}
	if d.GetDestination() != pool || d.GetPid() == 0 || d.GetSlot() != p.miner.Environment.Slot {
		return "", fmt.Errorf("the alert names destination %q, pid %d, slot %q", d.GetDestination(), d.GetPid(), d.GetSlot())
	}
	if err := p.belongs(int(d.GetPid()), filepath.Base(renamed)); err != nil {
		return "", err
	}
	count, err := stage.Metric(fmt.Sprintf(`hearth_detections_total{class="%s",rule="%s",severity="%s"}`, stage.ClassName, d.GetRule(), d.GetSeverity()))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ms=%s rule=%s pid=%d command=%s destination=%s metric=%s",
		ms(d.GetLatency().AsDuration()), d.GetRule(), d.GetPid(), d.GetCommand(), d.GetDestination(), count), nil
}

// quietPing holds the innocent flow open for a while: nothing may alert.
func (p *play) quietPing(binary, pool string) error {
	ping := p.Hearthctl.Command("exec", p.miner.ID(), "--", binary, "say", pool, pingLine)
	if err := stage.Eventually(5*time.Second, func() error {
		_, err := p.Hearthctl.Sh(p.miner, binary+" tcp "+pool)
		return err
	}); err != nil {
		return fmt.Errorf("the pool's server: %w", err)
	}
	if err := ping.Start(); err != nil {
		return err
	}
	time.Sleep(time.Second)
	_ = ping.Process.Kill()
	_ = ping.Wait()
	if d, err := p.miningAlert(); err == nil {
		return fmt.Errorf("a harmless flow raised %s", d.GetRule())
	} else if !errors.Is(err, errNoAlert) {
		return err
	}
	return nil
}

var errNoAlert = errors.New("no mining alert")

// miningAlert returns the newest mining detection of the miner's environment.
func (p *play) miningAlert() (*hearthv1.Detection, error) {
	stream, err := p.Node.Detections(context.Background(), &hearthv1.DetectionsRequest{Environment: p.miner.ID()})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *hearthv1.Detection
	for stream.Receive() {
		if d := stream.Msg().GetDetection(); strings.HasPrefix(d.GetRule(), "mining.") {
			last = d
		}
	}
	if last == nil && stream.Err() == nil {
		return nil, errNoAlert
	}
	return last, stream.Err()
}

// belongs checks that a pid on the host is a process of the miner's slot.
func (p *play) belongs(pid int, comm string) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), p.miner.Environment.Slot) {
		return fmt.Errorf("pid %d is not of slot %s: %s", pid, p.miner.Environment.Slot, b)
	}
	b, err = os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err == nil && strings.TrimSpace(string(b)) != comm {
		return fmt.Errorf("pid %d is %q, not %q", pid, b, comm)
	}
	return err
}

func (p *play) minerFrozen() (string, error) {
	events := p.UnifiedCgroup(p.miner.Environment.Slot, "cgroup.events")
	var b []byte
	if err := stage.Eventually(5*time.Second, func() (err error) {
		if b, err = os.ReadFile(events); err != nil {
			return err
		}
		if !strings.Contains(string(b), "frozen 1") {
			return fmt.Errorf("cgroup.events says %q", b)
		}
		return nil
	}); err != nil {
		return "", err
	}
	resp, err := p.Node.Get(context.Background(), &hearthv1.NodeGetRequest{Environment: p.miner.ID()})
	if err != nil {
		return "", err
	}
	e := resp.GetEnvironment()
	if e.GetPhase() != hearthv1.Phase_PHASE_QUARANTINED {
		return "", fmt.Errorf("the environment is %s", e.GetPhase())
	}
	return "cgroup.events=frozen phase=quarantined", nil
}

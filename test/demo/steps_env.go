package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"hearth/test/stage"
)

func (p *play) poolReady() (string, error) {
	start := time.Now()
	pool, err := p.Node.PoolFull(60 * time.Second)
	if err != nil {
		return "", err
	}
	p.clean = p.TakeInventory()
	return fmt.Sprintf("ready=%d s=%.1f probe=http things=%d", pool.GetReady(), time.Since(start).Seconds(), p.clean.Count()), nil
}

func (p *play) claimWarm() (string, error) {
	greeting := fmt.Sprintf("hello-%d", time.Now().UnixNano())
	start := time.Now()
	c, err := p.Hearthctl.Claim("-e", "GREETING="+greeting)
	if err != nil {
		return "", err
	}
	whole := time.Since(start)
	if !c.Environment.Warm {
		return "", errors.New("the claim was cold")
	}
	p.a = c
	body, err := c.Get(stage.ServicePort, "/cgi-bin/hello")
	if err != nil {
		return "", err
	}
	if !strings.Contains(body, greeting) {
		return "", fmt.Errorf("the service answers %q without the claim's variable %q", body, greeting)
	}
	return fmt.Sprintf("ms=%s command_ms=%s service=answered", ms(c.Duration()), ms(whole)), nil
}

func (p *play) exec() (string, error) {
	out, stderr, code := p.Hearthctl.Try("exec", p.a.ID(), "--", "sh", "-c", "echo to-stdout; echo to-stderr >&2; exit 7")
	if out != "to-stdout\n" || !strings.Contains(stderr, "to-stderr") || code != 7 {
		return "", fmt.Errorf("stdout %q stderr %q exit %d", out, stderr, code)
	}
	start := time.Now()
	if _, err := p.Hearthctl.Run("exec", p.a.ID(), "--", "true"); err != nil {
		return "", err
	}
	return fmt.Sprintf("exit=7 streams=2 command_ms=%s", ms(time.Since(start))), nil
}

func (p *play) rootInside() (string, error) {
	uid, err := p.Hearthctl.Sh(p.a, "touch /etc/written-by-root && id -u")
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(uid) != "0" {
		return "", fmt.Errorf("uid inside is %q", uid)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.a.Environment.PID))
	if err != nil {
		return "", err
	}
	outside := statusField(string(status), "Uid")
	if outside == "" || outside == "0" {
		return "", fmt.Errorf("uid outside is %q", outside)
	}
	return fmt.Sprintf("inside=0 outside=%s", outside), nil
}

// statusField is the first value of a line of /proc/<pid>/status.
func statusField(status, name string) string {
	for _, line := range strings.Split(status, "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Fields(rest)[0]
		}
	}
	return ""
}

func (p *play) egressInternet() (string, error) {
	if _, err := p.Hearthctl.Run("cp", p.Probe(), p.a.ID()+":/usr/local/bin/probe"); err != nil {
		return "", err
	}
	if _, err := p.Hearthctl.Sh(p.a, "chmod 755 /usr/local/bin/probe"); err != nil {
		return "", err
	}
	out, err := p.Hearthctl.Sh(p.a, "probe tcp "+stage.PublicAddress+":"+stage.ProbePort)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(out, "reached "+stage.PublicAddress) {
		return "", fmt.Errorf("the server said %q", out)
	}
	return "reached=" + stage.PublicAddress, nil
}

const probes = 3

// blocked proves a refusal: no probe is answered and the reason's counter rises
// by exactly the probes; with the judgement switched off the very same probes
// are answered; switched on again they are not.
func (p *play) blocked(target, reason string, others ...stage.Claimed) (string, error) {
	before, err := p.Node.Drops(p.a.ID(), reason)
	if err != nil {
		return "", err
	}
	if err := p.probeAnswers(target, 0); err != nil {
		return "", err
	}
	after, err := p.Node.Drops(p.a.ID(), reason)
	if err != nil {
		return "", err
	}
	if after-before != probes {
		return "", fmt.Errorf("%d drops counted as %s, want %d", after-before, reason, probes)
	}
	all := append([]stage.Claimed{p.a}, others...)
	for _, c := range all {
		if err := p.Node.Open(c, true); err != nil {
			return "", err
		}
	}
	control := p.probeAnswers(target, probes)
	for _, c := range all {
		if err := p.Node.Open(c, false); err != nil {
			return "", err
		}
	}
	if control != nil {
		return "", fmt.Errorf("positive control: %w", control)
	}
	if err := p.probeAnswers(target, 0); err != nil {
		return "", fmt.Errorf("after the control: %w", err)
	}
	return fmt.Sprintf("reason=%s drops=%d control=reached", reason, probes), nil
}

func (p *play) probeAnswers(target string, want int) error {
	out, err := p.Hearthctl.Sh(p.a, fmt.Sprintf("probe udp %s:%s %d", target, stage.ProbePort, probes))
	if err != nil {
		return err
	}
	if expect := fmt.Sprintf("answers=%d sent=%d\n", want, probes); out != expect {
		return fmt.Errorf("probing %s gave %q, want %q", target, out, expect)
	}
	return nil
}

func (p *play) egressMetadata() (string, error) { return p.blocked(stage.MetadataAddress, "metadata") }
func (p *play) egressNode() (string, error)     { return p.blocked(stage.UplinkNode, "node") }

func (p *play) egressNeighbour() (string, error) {
	var err error
	if p.b, err = p.Hearthctl.Claim(); err != nil {
		return "", err
	}
	if err := p.install(p.b, "/usr/local/bin/probe"); err != nil {
		return "", err
	}
	server := p.Hearthctl.Command("exec", p.b.ID(), "--", "probe", "serve", p.b.Environment.Address+":"+stage.ProbePort)
	if err := server.Start(); err != nil {
		return "", err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	if err := stage.Eventually(5*time.Second, func() error {
		_, err := p.Hearthctl.Sh(p.b, "probe tcp "+p.b.Environment.Address+":"+stage.ProbePort)
		return err
	}); err != nil {
		return "", fmt.Errorf("the neighbour's server: %w", err)
	}
	return p.blocked(p.b.Environment.Address, "neighbour", p.b)
}

// install copies the probe into an environment under a name.
func (p *play) install(c stage.Claimed, path string) error {
	if _, err := p.Hearthctl.Run("cp", p.Probe(), c.ID()+":"+path); err != nil {
		return err
	}
	_, err := p.Hearthctl.Sh(c, "chmod 755 "+path)
	return err
}

package detect

import (
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"hearth/internal/detect/flow"
	"hearth/internal/detect/rules"
	"hearth/internal/env"
)

// Report is what Evaluate found in a capture.
type Report struct {
	Packets  int       `json:"packets"`
	Segments int       `json:"segments"` // TCP over IPv4, with data
	Findings []Finding `json:"findings"`
}

// Finding is a rule's match in a capture.
type Finding struct {
	Rule      string         `json:"rule"`
	Severity  env.Severity   `json:"severity"`
	Local     netip.AddrPort `json:"local"`
	Remote    netip.AddrPort `json:"remote"`
	Direction string         `json:"direction"`
	Detail    string         `json:"detail"`
	At        time.Duration  `json:"at_ns"` // since the epoch, as captured
}

// maxFindings bounds a report.
const maxFindings = 10_000

// CheckRules loads the built-in rules and the layers on top as an engine would,
// fixtures and all.
func CheckRules(operator ...fs.FS) (*rules.Set, error) {
	set, err := rules.Load(layers(operator)...)
	if err != nil {
		return nil, fmt.Errorf("load rules: %w", err)
	}
	return set, nil
}

// Evaluate runs rules over the TCP flows of a pcap file; it needs no kernel.
func Evaluate(set *rules.Set, capture []byte) (Report, error) {
	var report Report
	table := flow.NewTable(flow.Limits{FlowsPerNet: maxCaptureFlows, Flows: maxCaptureFlows})
	state := captureFlows{local: map[[2]netip.AddrPort]netip.AddrPort{}, isn: map[[2]netip.AddrPort]uint32{}}
	err := packets(capture, func(at time.Duration, link uint32, frame []byte) {
		report.Packets++
		p, ok := parseTCP(ipv4(link, frame))
		if !ok {
			return
		}
		seg, ok := state.segment(p, at)
		if !ok {
			return
		}
		report.Segments++
		prefix, grown := table.Add(seg)
		if grown && due(prefix, seg.Data) {
			report.judge(set, prefix)
		}
	})
	return report, err
}

func (r *Report) judge(set *rules.Set, p flow.Prefix) {
	for _, m := range set.Judge(p) {
		if len(r.Findings) == maxFindings {
			return
		}
		r.Findings = append(r.Findings, Finding{
			Rule: m.Rule.Name(), Severity: m.Rule.Severity(),
			Local: p.Key.Local, Remote: p.Key.Remote, Direction: p.Direction.String(),
			Detail: m.Detail, At: p.At,
		})
	}
}

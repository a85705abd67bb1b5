package preflight

import (
	"context"
	"time"
)

// State is the outcome of a probe.
type State string

// The states. Degraded works, by a fallback or with a loss that Detail names.
const (
	OK       State = "ok"
	Degraded State = "degraded"
	Missing  State = "missing"
)

// Input is what the node is configured to use. Empty fields skip their probes.
type Input struct {
	StateDir    string // "/var/lib/hearth"; probed itself, or its nearest parent that exists
	RunDir      string // "/run/hearth", probed likewise
	CgroupMount string // "" is /sys/fs/cgroup
	// CgroupTree says where the cgroups of environments are going to be, and whose
	// they are. With an error too: why they are not systemd's.
	CgroupTree     func(context.Context) (string, error)
	BPFDir         string // "" is /sys/fs/bpf
	ContainerdBin  string // path of a managed containerd
	ContainerdSock string // socket of a given one
	RuncBin        string // path or name
	// Runtimes are the programs that classes may name besides runc, by name: paths,
	// or names that are looked for in RuntimePath, directories divided by colons.
	Runtimes    map[string]string
	RuntimePath string
	IDBase      uint32   // the id pool
	IDCount     uint32   // ids in it
	Listen      []string // TCP addresses that will be listened on
	Sockets     []string // Unix sockets that will be listened on
}

// Row is one probe's result.
type Row struct {
	Area     string `json:"area"`
	Feature  string `json:"feature"`
	State    State  `json:"state"`
	Tier     string `json:"tier,omitempty"`   // the variant that will be used: "tcx", "clsact"
	Detail   string `json:"detail,omitempty"` // what was seen
	Mend     string `json:"mend,omitempty"`   // what to do; empty if the state is ok
	Required bool   `json:"required"`
}

// Report is every row, in a fixed order.
type Report struct {
	Rows []Row `json:"rows"`
}

// The exit codes of a report.
const (
	exitOK           = 0
	exitPrecondition = 3
)

// ExitCode is 3 if a required feature is missing, else 0.
func (r Report) ExitCode() int {
	for _, row := range r.Rows {
		if row.Required && row.State == Missing {
			return exitPrecondition
		}
	}
	return exitOK
}

// result is what a probe found.
type result struct {
	state  State
	tier   string
	detail string
	mend   string
}

// probe tries one feature.
type probe struct {
	area     string
	feature  string
	required bool
	try      func(ctx context.Context) result
}

// probeTimeout bounds one probe. A probe that hangs in the kernel is given up,
// not ended: nothing can end it.
const probeTimeout = 10 * time.Second

// Check tries everything that in names. Most probes need root; without it they
// say what they were refused.
func Check(ctx context.Context, in Input) Report {
	if in.CgroupMount == "" {
		in.CgroupMount = "/sys/fs/cgroup"
	}
	if in.BPFDir == "" {
		in.BPFDir = "/sys/fs/bpf"
	}
	var rep Report
	for _, p := range probes(in) {
		res := bounded(ctx, p.try)
		if res.state == OK {
			res.mend = ""
		}
		rep.Rows = append(rep.Rows, Row{
			Area: p.area, Feature: p.feature, Required: p.required,
			State: res.state, Tier: res.tier, Detail: res.detail, Mend: res.mend,
		})
	}
	return rep
}

func bounded(ctx context.Context, try func(context.Context) result) result {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	done := make(chan result, 1)
	go func() { done <- try(ctx) }()
	select {
	case res := <-done:
		return res
	case <-ctx.Done():
		return result{state: Missing, detail: "no answer: " + ctx.Err().Error()}
	}
}

// yes is a found feature.
func yes(detail string) result { return result{state: OK, detail: detail} }

// no is an absent one.
func no(err error, mend string) result {
	return result{state: Missing, detail: err.Error(), mend: mend}
}

// orMissing is yes if err is nil.
func orMissing(err error, mend string) result {
	if err != nil {
		return no(err, mend)
	}
	return yes("")
}

// orDegraded is yes if err is nil, and otherwise works with a loss.
func orDegraded(err error, mend string) result {
	res := orMissing(err, mend)
	if res.state == Missing {
		res.state = Degraded
	}
	return res
}

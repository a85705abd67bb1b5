package netpol

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"hearth/internal/env"
)

// Config is what a Manager needs to know. The zero value of an optional field
// takes the value that Default gives.
type Config struct {
	Instance   string // owns everything; two instances may share a kernel
	PinDir     string // on a bpffs; default /sys/fs/bpf/<instance>
	LinkPrefix string // of host link names, 1–5 characters; two instances need two
	InitPath   string // envinit; `InitPath hold` carries new namespaces until create has returned

	Pool         netip.Prefix     // addresses of islands; the first is gateway and resolver of all
	ExtraRefused []netip.Prefix   // pod, service and other ranges of the site, refused as private
	Resolvers    []netip.AddrPort // upstream resolvers; empty answers SERVFAIL

	MTU        int // of island links; 0 takes the default route's
	MaxIslands int // room for islands on this node

	FlowQuota    int // open flows of one island
	NewFlowRate  int // new flows per second of one island, with a burst of four seconds' worth
	PayloadRate  int // payload records per second of one island, with a burst of one second's worth
	PayloadBytes int // size of the payload ring; a power of two, at least one page
	DNSInFlight  int // questions of one island that wait for an upstream
	DNSTimeout   time.Duration

	// UnsafeAllowOpen makes OpenForTest possible: an island that nothing
	// judges. It exists so that a test can prove that what it saw refused was
	// really there to be reached. Never set it on a node with tenants.
	UnsafeAllowOpen bool
	// ForceClsact attaches by clsact where tcx would work.
	ForceClsact bool
}

// Default is the configuration of a node where nothing was said.
func Default() Config {
	return Config{
		Instance:     "hearth",
		LinkPrefix:   "hth",
		InitPath:     "/usr/local/bin/envinit",
		Pool:         netip.MustParsePrefix("100.96.0.0/12"),
		MaxIslands:   4096,
		FlowQuota:    4096,
		NewFlowRate:  500,
		PayloadRate:  500,
		PayloadBytes: 4 << 20,
		DNSInFlight:  32,
		DNSTimeout:   5 * time.Second,
	}
}

var (
	instanceForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	prefixForm   = regexp.MustCompile(`^[a-z][a-z0-9]{0,4}$`)
)

// withDefaults fills what was left out.
func (c Config) withDefaults() Config {
	d := Default()
	c.Instance = cmp.Or(c.Instance, d.Instance)
	c.PinDir = cmp.Or(c.PinDir, "/sys/fs/bpf/"+c.Instance)
	c.LinkPrefix = cmp.Or(c.LinkPrefix, d.LinkPrefix)
	c.InitPath = cmp.Or(c.InitPath, d.InitPath)
	c.Pool = cmp.Or(c.Pool, d.Pool)
	c.MaxIslands = cmp.Or(c.MaxIslands, d.MaxIslands)
	c.FlowQuota = cmp.Or(c.FlowQuota, d.FlowQuota)
	c.NewFlowRate = cmp.Or(c.NewFlowRate, d.NewFlowRate)
	c.PayloadRate = cmp.Or(c.PayloadRate, d.PayloadRate)
	c.PayloadBytes = cmp.Or(c.PayloadBytes, d.PayloadBytes)
	c.DNSInFlight = cmp.Or(c.DNSInFlight, d.DNSInFlight)
	c.DNSTimeout = cmp.Or(c.DNSTimeout, d.DNSTimeout)
	return c
}

// Validate joins everything that is wrong; each fault wraps env.ErrInvalid.
func (c Config) Validate() error {
	c = c.withDefaults()
	var faults []error
	bad := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{env.ErrInvalid}, args...)...))
	}
	if !instanceForm.MatchString(c.Instance) {
		bad("instance %q: want lower-case letters, digits and dashes, at most 31", c.Instance)
	}
	if !prefixForm.MatchString(c.LinkPrefix) {
		bad("link prefix %q: want 1 to 5 lower-case letters and digits", c.LinkPrefix)
	}
	if !c.Pool.Addr().Is4() || c.Pool.Bits() < 8 || c.Pool.Bits() > 30 {
		bad("pool %s: want an IPv4 prefix of /8 to /30", c.Pool)
	} else if c.Pool != c.Pool.Masked() {
		bad("pool %s has host bits: want %s", c.Pool, c.Pool.Masked())
	}
	for _, p := range c.ExtraRefused {
		if !p.Addr().Is4() || p != p.Masked() {
			bad("refused range %s: want an IPv4 prefix without host bits", p)
		}
	}
	for _, r := range c.Resolvers {
		if !r.IsValid() || r.Port() == 0 {
			bad("resolver %s: want address:port", r)
		}
	}
	if c.PayloadBytes < 4096 || c.PayloadBytes&(c.PayloadBytes-1) != 0 {
		bad("payload ring of %d bytes: want a power of two of at least 4096", c.PayloadBytes)
	}
	for name, v := range map[string]int{"flow quota": c.FlowQuota, "new flow rate": c.NewFlowRate,
		"payload rate": c.PayloadRate, "islands": c.MaxIslands, "dns in flight": c.DNSInFlight} {
		if v < 1 || v > 1<<20 {
			bad("%s %d: want 1 to %d", name, v, 1<<20)
		}
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		bad("mtu %d: want 576 to 65535, or 0 for the default route's", c.MTU)
	}
	return errors.Join(faults...)
}

// gateway is the address that every island sees as its router and resolver.
func (c Config) gateway() netip.Addr { return c.Pool.Addr().Next() }

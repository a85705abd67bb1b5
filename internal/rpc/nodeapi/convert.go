package nodeapi

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/netpol"
	"hearth/internal/warm"
)

func claimOf(req *hearthv1.NodeClaimRequest) (warm.Claim, error) {
	spec := req.GetSpec()
	egress, err := egressOf(spec.GetEgress())
	if err != nil {
		return warm.Claim{}, err
	}
	ttl, err := lengthOf(spec.GetTimeToLive())
	if err != nil {
		return warm.Claim{}, fmt.Errorf("time to live: %w", err)
	}
	limits, err := limitsOf(spec.GetResources())
	if err != nil {
		return warm.Claim{}, err
	}
	return warm.Claim{
		Key: req.GetIdempotencyKey(), ID: env.ID(req.GetEnvironment()), Generation: env.Generation(req.GetGeneration()),
		Class: spec.GetClass(), Tenant: spec.GetTenant(), Variables: spec.GetVariables(), Hostname: spec.GetHostname(),
		Metadata: spec.GetMetadata(), Egress: egress, Limits: limits, Labels: spec.GetLabels(),
		Snapshot: env.SnapshotID(spec.GetSnapshot()), WarmOnly: req.GetWarmOnly(),
		ClaimKey: req.GetClaimKey(), ClaimRequest: req.GetClaimRequest(),
		Fetch: fetchOf(req.GetFetch()), TimeToLive: ttl, Lifetime: lifetimeOf(req.GetLifetime()), Mounts: mountsOf(spec.GetMounts()),
	}, nil
}

func mountsOf(mounts []*hearthv1.Mount) (out []env.Mount) {
	for _, m := range mounts {
		out = append(out, env.Mount{Name: m.GetName(), Directory: m.GetDirectory(), Path: m.GetPath(), ReadOnly: m.GetReadOnly()})
	}
	return out
}

// mountsProto is the inverse of mountsOf.
func mountsProto(mounts []env.Mount) (out []*hearthv1.Mount) {
	for _, m := range mounts {
		out = append(out, &hearthv1.Mount{Name: m.Name, Directory: m.Directory, Path: m.Path, ReadOnly: m.ReadOnly})
	}
	return out
}

// specOf is the inverse of claimOf, for the node that takes an environment over.
func specOf(c warm.Claim) *hearthv1.ClaimSpec {
	return &hearthv1.ClaimSpec{
		Class: c.Class, Tenant: c.Tenant, Variables: c.Variables, Hostname: c.Hostname, Metadata: c.Metadata,
		Egress: egressProto(c.Egress), Labels: c.Labels, Resources: limitsProto(c.Limits), Mounts: mountsProto(c.Mounts),
	}
}

// egressProto is the inverse of egressOf.
func egressProto(p *env.EgressPolicy) *hearthv1.EgressPolicy {
	if p == nil {
		return nil
	}
	out := &hearthv1.EgressPolicy{Allow: rulesProto(p.Allow), Deny: rulesProto(p.Deny)}
	for word, mode := range modes {
		if mode == p.Mode {
			out.Mode = word
		}
	}
	return out
}

func rulesProto(rules []env.EgressRule) (out []*hearthv1.EgressRule) {
	for _, r := range rules {
		rule := &hearthv1.EgressRule{Cidr: r.CIDR.String()}
		for _, p := range r.Ports {
			rule.Ports = append(rule.Ports, &hearthv1.PortRange{First: uint32(p.First), Last: uint32(p.Last)})
		}
		out = append(out, rule)
	}
	return out
}

// fetchOf is nil for no other node.
func fetchOf(f *hearthv1.FetchFrom) *warm.FetchFrom {
	if f == nil {
		return nil
	}
	return &warm.FetchFrom{Node: f.GetNode(), Address: f.GetAddress()}
}

var modes = map[hearthv1.EgressPolicy_Mode]env.EgressMode{
	hearthv1.EgressPolicy_MODE_INTERNET: env.EgressInternet,
	hearthv1.EgressPolicy_MODE_NONE:     env.EgressNone,
	hearthv1.EgressPolicy_MODE_ALLOW:    env.EgressAllow,
}

// maxEgressRules bounds what one claim may ask the kernel to hold.
const maxEgressRules = 256

// egressOf is nil for no policy: then only the class's holds.
func egressOf(p *hearthv1.EgressPolicy) (*env.EgressPolicy, error) {
	if p == nil {
		return nil, nil
	}
	mode, ok := modes[p.GetMode()]
	if !ok {
		return nil, fmt.Errorf("%w: egress mode %s; internet, none or allow", env.ErrInvalid, p.GetMode())
	}
	if n := len(p.GetAllow()) + len(p.GetDeny()); n > maxEgressRules {
		return nil, fmt.Errorf("%w: %d egress rules, at most %d", env.ErrInvalid, n, maxEgressRules)
	}
	if mode != env.EgressAllow && len(p.GetAllow()) > 0 {
		return nil, fmt.Errorf("%w: egress allow rules need mode allow", env.ErrInvalid)
	}
	out := &env.EgressPolicy{Mode: mode}
	var err error
	if out.Allow, err = rulesOf(p.GetAllow()); err != nil {
		return nil, err
	}
	out.Deny, err = rulesOf(p.GetDeny())
	return out, err
}

func rulesOf(rules []*hearthv1.EgressRule) ([]env.EgressRule, error) {
	out := make([]env.EgressRule, 0, len(rules))
	for _, r := range rules {
		cidr, err := netip.ParsePrefix(r.GetCidr())
		if err != nil || !cidr.Addr().Is4() {
			return nil, fmt.Errorf("%w: egress cidr %.50q is not an IPv4 prefix", env.ErrInvalid, r.GetCidr())
		}
		rule := env.EgressRule{CIDR: cidr.Masked()}
		for _, p := range r.GetPorts() {
			first, last := p.GetFirst(), p.GetLast()
			if last == 0 {
				last = first
			}
			if first == 0 || first > last || last > 65535 {
				return nil, fmt.Errorf("%w: egress ports %d-%d", env.ErrInvalid, first, last)
			}
			rule.Ports = append(rule.Ports, env.PortRange{First: uint16(first), Last: uint16(last)})
		}
		out = append(out, rule)
	}
	return out, nil
}

var phases = map[env.Phase]hearthv1.Phase{
	env.PhaseClaiming:    hearthv1.Phase_PHASE_CLAIMING,
	env.PhaseRunning:     hearthv1.Phase_PHASE_RUNNING,
	env.PhasePaused:      hearthv1.Phase_PHASE_PAUSED,
	env.PhaseStalled:     hearthv1.Phase_PHASE_STALLED,
	env.PhaseQuarantined: hearthv1.Phase_PHASE_QUARANTINED,
	env.PhaseReleased:    hearthv1.Phase_PHASE_RELEASED,
	env.PhaseFailed:      hearthv1.Phase_PHASE_FAILED,
	env.PhaseFenced:      hearthv1.Phase_PHASE_FENCED,
}

func (s *Service) environment(e warm.Environment) *hearthv1.Environment {
	out := &hearthv1.Environment{
		Id: string(e.ID), Class: e.Class, Tenant: e.Tenant, Generation: uint64(e.Generation),
		Phase: phases[e.Phase], Message: e.Message, Node: s.info.Node, Warm: e.Warm,
		ClaimedAt: timestamppb.New(e.Claimed), Labels: maps.Clone(e.Labels), Address: e.Address,
		Slot: string(e.Slot), RestoredFrom: string(e.Snapshot), Pid: uint32(e.PID),
		Ephemeral: e.Ephemeral, ClaimKey: e.ClaimKey, ClaimRequest: e.ClaimRequest, Resources: resourcesProto(e.Resources),
		Reason: e.Reason, Served: e.Served, Revision: e.Revision, Outdated: e.Outdated, Mounts: mountsProto(e.Mounts),
	}
	if e.Waited != 0 {
		out.Waited = durationpb.New(e.Waited)
	}
	if !e.Expires.IsZero() {
		out.ExpiresAt = timestamppb.New(e.Expires)
	}
	if e.TimeToLive != 0 {
		out.TimeToLive = durationpb.New(e.TimeToLive)
	}
	for _, p := range e.Ports {
		out.Ports = append(out.Ports, &hearthv1.Port{Name: p.Name, Number: uint32(p.Number), Http: p.Protocol == env.PortHTTP})
	}
	return out
}

func snapshotOf(s env.Snapshot) *hearthv1.Snapshot {
	return &hearthv1.Snapshot{
		Id: string(s.ID), Environment: string(s.Lineage), Class: s.Class, Parent: string(s.Parent),
		CreatedAt: timestamppb.New(s.Time), Tenant: s.Tenant,
		Stats: &hearthv1.SnapshotStats{
			Files: s.Stats.Files, Bytes: s.Stats.Bytes, NewBytes: s.Stats.NewBytes,
			FreezeMs: float64(s.Stats.Freeze) / float64(time.Millisecond),
			Took:     durationpb.New(s.Stats.Took), Redone: s.Stats.Redone,
		},
	}
}

func poolOf(p warm.PoolView) *hearthv1.Pool {
	return &hearthv1.Pool{
		Class: p.Class, Revision: p.Revision, Want: uint32(p.Want), Ready: uint32(p.Ready),
		Preparing: uint32(p.Preparing), Claimed: uint32(p.Claimed), Message: p.Message,
		MemoryBytes: uint64(p.Memory), Ephemeral: p.Ephemeral, Waiting: uint32(p.Waiting), Created: uint32(p.Created),
	}
}

func roomOf(r warm.Room) *hearthv1.Room {
	return &hearthv1.Room{
		SlotsMax: uint32(r.SlotsMax), SlotsUsed: uint32(r.SlotsUsed),
		MemoryMaxBytes: uint64(r.MemoryMax), MemoryReservedBytes: uint64(r.MemoryReserved),
		IdRangesMax: uint32(r.IDRangesMax), IdRangesUsed: uint32(r.IDRangesUsed),
	}
}

func dropsOf(drops map[env.Reason]uint64) map[string]uint64 {
	out := make(map[string]uint64, len(drops))
	for reason, n := range drops {
		out[string(reason)] = n
	}
	return out
}

func flowsOf(flows []netpol.Flow, c netpol.Counters) *hearthv1.FlowsResponse {
	out := &hearthv1.FlowsResponse{AllowedPackets: c.Allowed, Drops: dropsOf(c.Drops), DropsIn: dropsOf(c.DropsIn)}
	now := time.Now()
	for _, f := range flows {
		out.Flows = append(out.Flows, &hearthv1.Flow{
			Protocol: f.Protocol, Source: f.Local.String(), Destination: f.Remote.String(),
			PacketsOut: f.PacketsOut, PacketsIn: f.PacketsIn, BytesOut: f.BytesOut, BytesIn: f.BytesIn,
			First: timestamppb.New(now.Add(-f.FirstAge)), Last: timestamppb.New(now.Add(-f.LastAge)),
		})
	}
	return out
}

// Detection is the form of a finding on the wire.
func Detection(d env.Detection) *hearthv1.Detection {
	out := &hearthv1.Detection{
		Time: timestamppb.New(d.Time), Rule: d.Rule, Severity: string(d.Severity), Environment: string(d.Environment),
		Slot: string(d.Slot), Class: d.Class, Pid: uint32(d.PID), Command: d.Command, Detail: d.Detail,
		Response: string(d.Response), Latency: durationpb.New(d.Latency),
	}
	if d.Destination.IsValid() {
		out.Destination = d.Destination.String()
	}
	return out
}

package netpol

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// The counters of the second wall, by what it refused.
const (
	wallDNAT      = "dnat"      // rewritten to another destination after tc had judged
	wallLocal     = "local"     // delivered to the node
	wallNeighbour = "neighbour" // forwarded to another island
	wallConns     = "conntrack" // beyond the island's share of connection tracking
)

var wallCounters = []string{wallDNAT, wallLocal, wallNeighbour, wallConns}

const (
	statusDNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	unjudged   = "unjudged"
	conns      = "conns"
)

// A wall is the nft table of one instance: NAT for what leaves, and what must
// not happen once NAT has had its say.
type wall struct {
	cfg   Config
	table *nftables.Table
}

func newWall(cfg Config) *wall {
	return &wall{cfg: cfg, table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "hearth-" + cfg.Instance}}
}

// install replaces the table in one transaction: there is no moment without.
// open lists the addresses that OpenForTest exempted.
func (w *wall) install(open []netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(w.table) // so that deleting it cannot fail
	c.DelTable(w.table)
	c.AddTable(w.table)
	for _, name := range wallCounters {
		c.AddObj(&nftables.NamedObj{Table: w.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	exempt, share := w.exempt(), &nftables.Set{Table: w.table, Name: conns, Dynamic: true, KeyType: nftables.TypeIPAddr, Size: 1 << 16} // the kernel drops those without connections
	elements := make([]nftables.SetElement, len(open))
	for i, a := range open {
		elements[i] = nftables.SetElement{Key: a.AsSlice()}
	}
	if err := errors.Join(c.AddSet(exempt, elements), c.AddSet(share, nil)); err != nil {
		return fmt.Errorf("add nft sets of table %s: %w", w.table.Name, err)
	}
	w.forward(c, exempt, share)
	w.input(c, exempt)
	w.masquerade(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install nft table ip %s: %w: %w", w.table.Name, &env.UnsupportedError{
			Feature: "nftables with masquerade, conntrack and connlimit", Needs: "the kernel modules nf_tables, nft_masq, nft_ct, nft_connlimit"}, err)
	}
	return nil
}

func (w *wall) exempt() *nftables.Set {
	return &nftables.Set{Table: w.table, Name: unjudged, KeyType: nftables.TypeIPAddr}
}

func (w *wall) forward(c *nftables.Conn, exempt, share *nftables.Set) {
	chain := w.chain(c, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	w.rule(c, chain, w.fromIsland(), inSet(exempt), accept())
	w.rule(c, chain, w.fromIsland(), wasDNAT(), drop(wallDNAT))
	w.rule(c, chain, w.fromIsland(), w.linkOf(expr.MetaKeyOIFNAME, expr.CmpOpEq), drop(wallNeighbour))
	over := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(expr.CtStateBitNEW), Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(0)},
		source(),
		&expr.Dynset{SrcRegKey: 1, SetName: share.Name, SetID: share.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
			Exprs: []expr.Any{&expr.Connlimit{Count: uint32(2 * w.cfg.FlowQuota), Flags: expr.NFT_CONNLIMIT_F_INV}}},
	}
	w.rule(c, chain, w.fromIsland(), over, drop(wallConns))
}

func (w *wall) input(c *nftables.Conn, exempt *nftables.Set) {
	chain := w.chain(c, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	w.rule(c, chain, w.fromIsland(), inSet(exempt), accept())
	w.rule(c, chain, w.fromIsland(), wasDNAT(), drop(wallDNAT))
	for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		resolver := []expr.Any{
			destination(), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: w.cfg.gateway().AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
		}
		w.rule(c, chain, w.fromIsland(), resolver, accept())
	}
	w.rule(c, chain, w.fromIsland(), drop(wallLocal))
}

// masquerade gives what leaves the node the node's address.
func (w *wall) masquerade(c *nftables.Conn) {
	chain := w.chain(c, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	notGateway := []expr.Any{source(), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: w.cfg.gateway().AsSlice()}}
	w.rule(c, chain, w.fromPool(), notGateway, w.linkOf(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})
}

func (w *wall) chain(c *nftables.Conn, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return c.AddChain(&nftables.Chain{Table: w.table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
}

func (w *wall) rule(c *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: w.table, Chain: chain}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	c.AddRule(r)
}

// fromIsland matches by the link: that the source is right, tc has seen to.
func (w *wall) fromIsland() []expr.Any { return w.linkOf(expr.MetaKeyIIFNAME, expr.CmpOpEq) }

// linkOf compares as many bytes as the prefix has, like iifname "hth*".
func (w *wall) linkOf(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(w.cfg.LinkPrefix)}}
}

func (w *wall) fromPool() []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - w.cfg.Pool.Bits()))
	return []expr.Any{source(), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: w.cfg.Pool.Addr().AsSlice()}}
}

func source() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func destination() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

func inSet(s *nftables.Set) []expr.Any {
	return []expr.Any{source(), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func wasDNAT() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(statusDNAT), Xor: word(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(0)}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop(counter string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counter}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func word(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// standing reports whether the table is whole: somebody's `nft flush ruleset`
// takes it away.
func (w *wall) standing() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("list nft chains: %w", err)
	}
	rules := 0
	for _, chain := range chains {
		if chain.Table.Name != w.table.Name {
			continue
		}
		have, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return false, fmt.Errorf("list nft rules of %s: %w", chain.Name, err)
		}
		rules += len(have)
	}
	return rules == wallRules, nil
}

// wallRules is how many rules install writes.
const wallRules = 4 + 5 + 1

func (w *wall) counters() (map[string]uint64, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	out := map[string]uint64{}
	for _, name := range wallCounters {
		o, err := c.GetObject(&nftables.CounterObj{Table: w.table, Name: name})
		if err != nil {
			return nil, fmt.Errorf("read nft counter %s: %w", name, err)
		}
		if counter, ok := o.(*nftables.CounterObj); ok {
			out[name] = counter.Packets
		}
	}
	return out, nil
}

// present reports whether anything of the table is there.
func (w *wall) present() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("list nft tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == w.table.Name {
			return true, nil
		}
	}
	return false, nil
}

func (w *wall) remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(w.table)
	c.DelTable(w.table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove nft table ip %s: %w", w.table.Name, err)
	}
	return nil
}

// exemptAddress lets an address pass the second wall.
func (w *wall) exemptAddress(a netip.Addr) error {
	return w.edit("exempt", a, func(c *nftables.Conn, s *nftables.Set, e []nftables.SetElement) error { return c.SetAddElements(s, e) })
}

// judge ends the exemption.
func (w *wall) judge(a netip.Addr) error {
	err := w.edit("judge", a, func(c *nftables.Conn, s *nftables.Set, e []nftables.SetElement) error {
		return c.SetDeleteElements(s, e)
	})
	if errors.Is(err, unix.ENOENT) { // the wall was built anew meanwhile
		return nil
	}
	return err
}

func (w *wall) edit(verb string, a netip.Addr, f func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err := f(c, w.exempt(), []nftables.SetElement{{Key: a.AsSlice()}}); err != nil {
		return fmt.Errorf("%s %s in nft table %s: %w", verb, a, w.table.Name, err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%s %s in nft table %s: %w", verb, a, w.table.Name, err)
	}
	return nil
}

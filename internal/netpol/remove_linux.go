package netpol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove takes away all that an instance owns in the kernel: islands' links,
// pins and maps, NAT and the second wall, the gateway's address. It needs no
// Manager, and so works on what another version left, or half of it. It goes on
// over faults, may be repeated, and returns what was there. No process of an
// environment may run any more: links without programs would judge nothing.
func Remove(ctx context.Context, cfg Config, log *slog.Logger) (removed []string, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m := &Manager{cfg: cfg, log: log, wall: newWall(cfg)}
	links, faults := m.removeLinks(ctx)
	for _, slot := range links {
		removed = append(removed, "island of "+slot)
	}
	had, err := m.wall.present()
	if err == nil && had {
		if err = m.wall.remove(); err == nil {
			removed = append(removed, "nft table ip "+m.wall.table.Name)
		}
	}
	faults = append(faults, err)
	if had, err := lowerGateway(cfg); err != nil {
		faults = append(faults, err)
	} else if had {
		removed = append(removed, "gateway address "+cfg.gateway().String())
	}
	if _, err := os.Stat(cfg.PinDir); err == nil {
		if err := os.RemoveAll(cfg.PinDir); err != nil {
			faults = append(faults, fmt.Errorf("remove pins: %w", err))
		} else {
			removed = append(removed, "pins in "+cfg.PinDir)
		}
	}
	return removed, errors.Join(faults...)
}

// removeLinks deletes the host's ends of all islands and names their slots.
func (m *Manager) removeLinks(ctx context.Context) (slots []string, faults []error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, []error{fmt.Errorf("list links: %w", err)}
	}
	for _, l := range links {
		slot, ours := m.cfg.slotOfAlias(l.Attrs().Alias)
		if !ours || ctx.Err() != nil {
			continue
		}
		if err := delLink(l.Attrs().Name); err != nil {
			faults = append(faults, err)
			continue
		}
		slots = append(slots, string(slot))
	}
	return slots, append(faults, ctx.Err())
}

// lowerGateway takes the gateway's address off lo.
func lowerGateway(cfg Config) (had bool, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find lo: %w", err)
	}
	err = netlink.AddrDel(lo, &netlink.Addr{IPNet: hostNet(cfg.gateway())})
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("remove gateway address: %w", err)
	}
	return true, nil
}

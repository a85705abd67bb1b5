package netpol

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// Prepare compiles policies and puts them into the kernel, so that a later
// Unlock with them is one map update. It is never needed for correctness.
func (m *Manager) Prepare(policies ...env.EgressPolicy) error {
	for _, p := range policies {
		ready, err := m.policies.get(p)
		if err != nil {
			return err
		}
		m.policies.put(ready) // a sweep leaves it once
	}
	return nil
}

// Unlock opens the island to what both policies allow; a nil claim narrows
// nothing. On an error the island is as it was.
func (m *Manager) Unlock(slot env.SlotID, class env.EgressPolicy, claim *env.EgressPolicy) error {
	return m.change(slot, func(is *island) error {
		return m.setPolicies(is, bpf.IslandIslandModeISLAND_OPEN, class, claim)
	})
}

// SetPolicy changes what an island may reach, from the next packet on, whether
// it is locked or open.
func (m *Manager) SetPolicy(slot env.SlotID, class env.EgressPolicy, claim *env.EgressPolicy) error {
	return m.change(slot, func(is *island) error { return m.setPolicies(is, is.mode, class, claim) })
}

// Lock shuts the island in both directions, open flows included. One that was never
// connected is shut.
func (m *Manager) Lock(slot env.SlotID) error {
	is, err := m.island(slot)
	if err != nil || !is.linked() {
		return err
	}
	return m.change(slot, func(is *island) error {
		if err := m.judgeAgain(is); err != nil {
			return err
		}
		return m.write(is, bpf.IslandIslandModeISLAND_LOCKED, is.class, is.claim)
	})
}

// OpenForTest ends all judgement of the island, in tc and in the second wall,
// until the next Unlock or Lock. Without Config.UnsafeAllowOpen it fails with
// env.ErrDenied, and the loaded program would not honour it.
func (m *Manager) OpenForTest(slot env.SlotID) error {
	if !m.cfg.UnsafeAllowOpen {
		return fmt.Errorf("%w: opening an island for a test needs the unsafe setting, which no node with tenants may have", env.ErrDenied)
	}
	return m.change(slot, func(is *island) error {
		if err := m.wall.exemptAddress(is.address); err != nil {
			return err
		}
		is.unjudged = true
		m.log.Warn("island opened for a test", "slot", is.slot)
		return m.write(is, bpf.IslandIslandModeISLAND_UNJUDGED, is.class, is.claim)
	})
}

func (m *Manager) change(slot env.SlotID, f func(*island) error) error {
	is, err := m.island(slot)
	if err != nil {
		return err
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.gone || is.attach == "" {
		return fmt.Errorf("%w: the island of %s is being made or taken down", env.ErrState, slot)
	}
	return f(is)
}

func (is *island) linked() bool {
	is.mu.Lock()
	defer is.mu.Unlock()
	return is.ifindex != 0
}

// setPolicies writes the record with new policies. Callers hold the island.
func (m *Manager) setPolicies(is *island, mode bpf.IslandIslandMode, class env.EgressPolicy, claim *env.EgressPolicy) error {
	if err := m.judgeAgain(is); err != nil {
		return err
	}
	newClass, err := m.policies.get(class)
	if err != nil {
		return fmt.Errorf("class policy of %s: %w", is.slot, err)
	}
	var newClaim *policy
	if claim != nil {
		if newClaim, err = m.policies.get(*claim); err != nil {
			m.policies.put(newClass)
			return fmt.Errorf("claim policy of %s: %w", is.slot, err)
		}
	}
	oldClass, oldClaim := is.class, is.claim
	if err := m.write(is, mode, newClass, newClaim); err != nil {
		m.policies.put(newClass, newClaim)
		return err
	}
	m.policies.put(oldClass, oldClaim)
	is.classOf, is.claimOf = &class, claim
	return nil
}

// judgeAgain ends what OpenForTest began, in the second wall.
func (m *Manager) judgeAgain(is *island) error {
	if !is.unjudged {
		return nil
	}
	if err := m.wall.judge(is.address); err != nil {
		return err
	}
	is.unjudged = false
	return nil
}

// write is the one map update. BPF_F_LOCK makes it atomic for the program.
func (m *Manager) write(is *island, mode bpf.IslandIslandMode, class, claim *policy) error {
	next := &island{netID: is.netID, address: is.address, mac: is.mac, hostMAC: is.hostMAC, mode: mode, class: class, claim: claim}
	if err := m.kernel.Islands.Update(uint32(is.ifindex), next.kernelRecord(), ebpf.UpdateExist|ebpf.UpdateLock); err != nil {
		return fmt.Errorf("write island record of %s: %w", is.slot, err)
	}
	is.mode, is.class, is.claim = mode, class, claim
	return nil
}

func isFull(err error) bool {
	return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
}

package warm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hearth/internal/env"
)

// mountingNode has a directory that nobody writes to, one for each tenant, and a
// class that allows both and one that the node does not have.
func mountingNode(t *testing.T, test func(b *bench, n *Node)) {
	t.Helper()
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		shared, homes := filepath.Join(filepath.Dir(b.dir), "shared"), filepath.Join(filepath.Dir(b.dir), "homes")
		if err := errors.Join(os.MkdirAll(filepath.Join(shared, "images"), 0o755), os.Mkdir(homes, 0o700)); err != nil {
			t.Fatal(err)
		}
		b.mounts = map[string]MountRoot{
			"shared": {Path: shared},
			"homes":  {Path: homes, Writable: true, PerTenant: true},
			"secret": {Path: shared},
		}
		class := demoClass(2)
		class.Mounts = []string{"shared", "homes", "elsewhere"}
		n := b.open(class)
		stop := runNode(t, n)
		synctest.Wait()
		test(b, n)
		stop()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (i *fakeInit) Mount(binds []Bind) error {
	if err := i.call("mount"); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, b := range binds {
		i.mounted[i.pid] = append(i.mounted[i.pid], Bind{Name: b.Name, Path: b.Path, ReadOnly: b.ReadOnly})
	}
	return nil
}

func (w *world) mountsOf(pid int) []Bind {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mounted[pid]
}

func TestAClaimHasDirectoriesOfTheNode(t *testing.T) {
	mountingNode(t, func(b *bench, n *Node) {
		t := b.t
		mounts := []env.Mount{
			{Name: "shared", Directory: "images", Path: "/data", ReadOnly: true},
			{Name: "homes", Path: "/home/agent"},
		}
		a, err := n.Claim(t.Context(), Claim{Class: "demo", Tenant: "acme", Mounts: mounts})
		if err != nil {
			t.Fatal(err)
		}
		if !a.Environment.Warm {
			t.Error("a ready slot would have done")
		}
		want := []Bind{{Name: "shared", Path: "/data", ReadOnly: true}, {Name: "homes", Path: "/home/agent"}}
		if diff := cmp.Diff(want, b.world.mountsOf(a.Environment.PID), cmpopts.IgnoreFields(Bind{}, "Dir")); diff != "" {
			t.Errorf("mounted (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(mounts, a.Environment.Mounts); diff != "" {
			t.Errorf("the environment's (-want +got):\n%s", diff)
		}
		origin, err := n.Origin(a.Environment.ID)
		if err != nil || !cmp.Equal(origin.Mounts, mounts) {
			t.Errorf("for its next node: %v, %v", origin.Mounts, err)
		}
		_, children, err := n.Fork(t.Context(), a.Environment.ID, []Claim{{}})
		if err != nil || !cmp.Equal(children[0].Environment.Mounts, mounts) {
			t.Errorf("fork: %+v, %v", children, err)
		}
	})
}

func TestAClaimIsRefusedAMountBeforeItTakesASlot(t *testing.T) {
	mountingNode(t, func(b *bench, n *Node) {
		t := b.t
		for name, c := range map[string]struct {
			mount  env.Mount
			tenant string
			want   error
		}{
			"class says no":    {env.Mount{Name: "secret", Path: "/data", ReadOnly: true}, "acme", env.ErrDenied},
			"node has none":    {env.Mount{Name: "elsewhere", Path: "/data", ReadOnly: true}, "acme", env.ErrUnsupported},
			"not writable":     {env.Mount{Name: "shared", Path: "/data"}, "acme", env.ErrDenied},
			"no such place":    {env.Mount{Name: "shared", Directory: "films", Path: "/data", ReadOnly: true}, "acme", env.ErrNotFound},
			"whose home":       {env.Mount{Name: "homes", Path: "/home"}, "", env.ErrInvalid},
			"everybody's home": {env.Mount{Name: "homes", Path: "/home"}, ".", env.ErrInvalid},
			"another's home":   {env.Mount{Name: "homes", Path: "/home"}, "../shared", env.ErrInvalid},
			"out of the node":  {env.Mount{Name: "shared", Directory: "../homes", Path: "/data", ReadOnly: true}, "acme", env.ErrInvalid},
			"over the machine": {env.Mount{Name: "shared", Path: "/proc", ReadOnly: true}, "acme", env.ErrInvalid},
		} {
			_, err := n.Claim(t.Context(), Claim{Class: "demo", Tenant: c.tenant, Mounts: []env.Mount{c.mount}})
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		if p := n.Pools()[0]; p.Ready != 2 || p.Claimed != 0 {
			t.Errorf("pool = %+v, the refused took slots of it", p)
		}
	})
}

// A mount that fails half done leaves nobody a slot in which it half is.
func TestASlotIntoWhichNothingCanBeMountedIsDestroyed(t *testing.T) {
	mountingNode(t, func(b *bench, n *Node) {
		t := b.t
		broken := errors.New("no room for mounts")
		b.world.failWith(func(call string) error {
			if call == "mount" {
				return broken
			}
			return nil
		})
		_, err := n.Claim(t.Context(), Claim{Class: "demo", Mounts: []env.Mount{{Name: "shared", Path: "/data", ReadOnly: true}}})
		if !errors.Is(err, broken) {
			t.Fatalf("claim = %v", err)
		}
		b.world.failWith(nil)
		synctest.Wait()
		if envs := n.List(); len(envs) != 0 {
			t.Errorf("environments: %+v", envs)
		}
	})
}

package ctrd

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"hearth/internal/env"
)

func testSpec() Spec {
	return Spec{
		Slot:   "s-01arz3ndektsv4rrffq69g5fav",
		Image:  Image{Ref: "r", Env: []string{"A=image", "B=image", "broken"}},
		Class:  env.Class{Env: map[string]string{"B": "class", "C": "class"}, Resources: env.Resources{CPUMillis: 250, MemoryBytes: 1 << 30, PIDs: 99}},
		IDs:    env.IDRange{Base: 1 << 30, Size: 65536},
		UserNS: "/proc/7/ns/user", NetNS: "/proc/8/fd/9", CgroupsPath: "/hearth/s/ctr",
		InitPath: "/lib/envinit", Hostname: "box",
		Mounts: []Mount{{Source: "/w", Target: "/workspace"}},
	}
}

func TestEveryNamespaceIsTheContainersOwn(t *testing.T) {
	s := ociSpec(testSpec(), limits{noFile: 4096})
	got := map[specs.LinuxNamespaceType]string{}
	for _, n := range s.Linux.Namespaces {
		got[n.Type] = n.Path
	}
	want := map[specs.LinuxNamespaceType]string{
		"user": "/proc/7/ns/user", "network": "/proc/8/fd/9", "pid": "", "mount": "", "uts": "", "ipc": "", "cgroup": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 30, Size: 65536}}
	if diff := cmp.Diff([][]specs.LinuxIDMapping{ids, ids}, [][]specs.LinuxIDMapping{s.Linux.UIDMappings, s.Linux.GIDMappings}); diff != "" {
		t.Errorf("mappings:\n%s", diff)
	}
}

func TestVariablesOfTheClassWinOverTheImages(t *testing.T) {
	want := []string{"A=image", "B=class", "C=class", "HOME=/root", "PATH=" + defaultPath}
	if diff := cmp.Diff(want, environment(testSpec())); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

func TestResourcesBecomeLimitsAndZeroSetsNone(t *testing.T) {
	r := resources(testSpec().Class.Resources)
	if *r.CPU.Quota != 25_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 1<<30 || *r.Pids.Limit != 99 {
		t.Errorf("limits: cpu %+v, memory %+v, pids %+v", r.CPU, r.Memory, r.Pids)
	}
	none := resources(env.Resources{})
	if none.CPU != nil || none.Memory != nil || none.Pids != nil {
		t.Errorf("zero resources set limits: %+v", none)
	}
	if len(none.Devices) != 1 || none.Devices[0].Allow {
		t.Errorf("devices are not refused by default: %+v", none.Devices)
	}
}

func TestMountsAreBoundAndRestricted(t *testing.T) {
	s := ociSpec(testSpec(), limits{noFile: 4096})
	at := func(dest string) specs.Mount {
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
		if i < 0 {
			t.Fatalf("no mount at %s", dest)
		}
		return s.Mounts[i]
	}
	if m := at(InitTarget); m.Source != "/lib/envinit" || !slices.Contains(m.Options, "ro") {
		t.Errorf("init: %+v", m)
	}
	if m := at(IdentityTarget); m.Type != "tmpfs" || !slices.Contains(m.Options, "noexec") || !slices.Contains(m.Options, "mode=755") {
		t.Errorf("identity: %+v", m)
	}
	if m := at("/workspace"); m.Source != "/w" || !slices.Equal(m.Options, []string{"rbind", "rw", "nosuid", "nodev"}) {
		t.Errorf("workspace: %+v", m)
	}
	if m := at("/dev/shm"); !slices.Contains(m.Options, "size=536870912") {
		t.Errorf("shm: %+v", m)
	}
}

func TestDescriptorLimitNeverExceedsTheAgents(t *testing.T) {
	r := ociSpec(testSpec(), limits{noFile: 4096}).Process.Rlimits[0]
	if r.Soft != 4096 || r.Hard != 4096 {
		t.Errorf("limit = %+v", r)
	}
}

func TestAClassBoundsDescriptorsAndIsRefusedWhatTheAgentLacks(t *testing.T) {
	s := testSpec()
	s.Class.Resources.OpenFiles = 1000
	if r := ociSpec(s, limits{noFile: 4096}).Process.Rlimits[0]; r.Soft != 1000 || r.Hard != 1000 {
		t.Errorf("limit = %+v", r)
	}
	for own, fits := range map[uint64]bool{4096: true, 1000: true, 999: false} {
		err := limits{noFile: own}.refuse(s.Class.Resources)
		if fits != (err == nil) || !fits && (!errors.Is(err, env.ErrUnsupported) || !strings.Contains(err.Error(), "999")) {
			t.Errorf("1000 of an agent that may open %d: %v", own, err)
		}
	}
}

func TestBurstAndWeightAreTheContainersToo(t *testing.T) {
	r := resources(env.Resources{CPUMillis: 500, CPUBurstMillis: 300, CPUWeight: 200})
	if r.CPU.Burst == nil || *r.CPU.Burst != 30_000 || *r.CPU.Shares != 2048 {
		t.Errorf("cpu = %+v", r.CPU)
	}
	if r := resources(env.Resources{CPUMillis: 500}); r.CPU.Burst != nil {
		t.Errorf("a burst that nobody asked for: %d", *r.CPU.Burst)
	}
}

func TestSeccompAllowsOnlyTheListedFamiliesAndNoRefusedCall(t *testing.T) {
	p := ociSpec(testSpec(), limits{noFile: 4096}).Linux.Seccomp
	if p.DefaultAction != specs.ActErrno {
		t.Errorf("default action %s", p.DefaultAction)
	}
	if slices.Contains(p.Architectures, specs.ArchX32) {
		t.Error("x32 is allowed")
	}
	families := map[string][]uint64{}
	for _, rule := range p.Syscalls {
		for _, n := range rule.Names {
			if rule.Action == specs.ActAllow && slices.Contains(refusedSyscalls, n) {
				t.Errorf("%s is allowed", n)
			}
			if n == "socket" || n == "socketpair" {
				families[n] = append(families[n], rule.Args[0].Value)
			}
			if slices.Contains([]string{"unshare", "setns", "mount", "sethostname", "open_by_handle_at"}, n) && rule.Action == specs.ActAllow {
				t.Errorf("%s is allowed", n)
			}
		}
	}
	if diff := cmp.Diff(map[string][]uint64{"socket": {1, 2, 10, 16}, "socketpair": {1}}, families); diff != "" {
		t.Errorf("families:\n%s", diff)
	}
}

func TestASpecThatWouldShareWithTheHostIsRefused(t *testing.T) {
	good := testSpec()
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Spec){
		"user namespace":    func(s *Spec) { s.UserNS = "" },
		"network namespace": func(s *Spec) { s.NetNS = "" },
		"cgroup path":       func(s *Spec) { s.CgroupsPath = "" },
		"root outside":      func(s *Spec) { s.IDs.Base = 0 },
		"hostname":          func(s *Spec) { s.Hostname = "" },
		"init":              func(s *Spec) { s.InitPath = "" },
		"slot id":           func(s *Spec) { s.Slot = "../x" },
	} {
		s := testSpec()
		spoil(&s)
		if err := s.check(); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestOverlayOptionsReplaceThoseOfTheSnapshotter(t *testing.T) {
	in := []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "redirect_dir=on", "metacopy=on", "index=off"}}}
	want := []string{"lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "index=off", "redirect_dir=nofollow", "metacopy=off"}
	if diff := cmp.Diff(want, withOverlayOptions(in)[0].Options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	fs, err := parseOverlay(in)
	if diff := cmp.Diff(Rootfs{Upper: "/u", Work: "/w", Lowers: []string{"/a", "/b"}}, fs); diff != "" || err != nil {
		t.Errorf("rootfs: %v\n%s", err, diff)
	}
	for _, bad := range [][]mount.Mount{nil, {{Type: "bind"}}, {{Type: "overlay", Options: []string{"upperdir=/u"}}}} {
		if _, err := parseOverlay(bad); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("parseOverlay(%v) = %v, want ErrInvalid", bad, err)
		}
	}
}

func TestConfigurationThatCannotWorkIsNamed(t *testing.T) {
	long := "/" + strings.Repeat("x", 100)
	for says, c := range map[string]Config{
		"instance":        {Address: "/s"},
		"neither":         {Instance: "h"},
		"not an absolute": {Instance: "h", BinDir: "/b", Root: "r", State: "/s"},
		"longer than":     {Instance: "h", BinDir: "/b", Root: "/r", State: long},
	} {
		if _, err := c.complete(); !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want ErrInvalid saying %q", c, err, says)
		}
	}
	c, err := Config{Instance: "h", BinDir: "/b", Root: "/r", State: "/s"}.complete()
	if err != nil || c.Namespace != "h" || c.Snapshotter != "overlayfs" || c.Address != "/s/containerd.sock" {
		t.Errorf("defaults: %+v, %v", c, err)
	}
}

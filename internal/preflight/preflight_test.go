package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyAMissingRequiredFeatureFails(t *testing.T) {
	row := func(s State, required bool) Report { return Report{Rows: []Row{{State: s, Required: required}}} }
	for _, tt := range []struct {
		state    State
		required bool
		want     int
	}{{OK, true, 0}, {Degraded, true, 0}, {Missing, false, 0}, {Missing, true, 3}} {
		if got := row(tt.state, tt.required).ExitCode(); got != tt.want {
			t.Errorf("%s, required %t: exit code %d, want %d", tt.state, tt.required, got, tt.want)
		}
	}
}

func TestTableAlignsAndNamesTheMend(t *testing.T) {
	r := Report{Rows: []Row{
		{Area: "kernel", Feature: "version", State: OK, Detail: "6.1.0", Required: true},
		{Area: "bpf", Feature: "traffic control", State: Degraded, Tier: "clsact", Detail: "no tcx", Mend: "boot Linux 6.6"},
		{Area: "runc", Feature: "seccomp", State: Missing, Detail: "a\nb", Mend: "build it in", Required: true},
	}}
	want := strings.Join([]string{
		"AREA    FEATURE          STATE     TIER    DETAIL",
		"kernel  version          ok                6.1.0",
		"bpf     traffic control  degraded  clsact  no tcx; mend: boot Linux 6.6",
		"runc    seccomp          MISSING           a b; mend: build it in",
		"preflight: 1 required features are missing",
		"",
	}, "\n")
	if diff := cmp.Diff(want, r.Table()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	b, err := r.JSON()
	var back Report
	if err != nil || json.Unmarshal(b, &back) != nil {
		t.Fatalf("JSON: %s, %v", b, err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("JSON does not come back:\n%s", diff)
	}
}

func TestVersionsAreReadFromWhatProgramsSay(t *testing.T) {
	for text, want := range map[string]version{
		"containerd github.com/containerd/containerd/v2 v2.4.2 abc": {2, 4, 2},
		"containerd containerd.io 1.6.20 2806":                      {1, 6, 20},
		"runc version 1.2.0-rc.1\ncommit: x\nspec: 1.2.0":           {1, 2, 0},
		"6.1.0-18-cloud-amd64":                                      {6, 1, 0},
		"6.18":                                                      {6, 18, 0},
	} {
		if got, err := findVersion(text); err != nil || got != want {
			t.Errorf("findVersion(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	if _, err := findVersion("no numbers here"); err == nil {
		t.Error("a version was found in words")
	}
	if (version{1, 6, 20}).atLeast(2, 0) || !(version{2, 0, 0}).atLeast(1, 7) || (version{6, 0, 9}).atLeast(6, 1) {
		t.Error("versions compare wrongly")
	}
}

func FuzzFindVersion(f *testing.F) {
	f.Add("runc version 1.5.2")
	f.Add("")
	f.Fuzz(func(_ *testing.T, s string) { _, _ = findVersion(s) })
}

func FuzzIDsOverlap(f *testing.F) {
	f.Add("user:100000:65536\n", uint32(1<<30), uint32(65536))
	f.Fuzz(func(_ *testing.T, s string, base, count uint32) { idsOverlap(s, base, count) })
}

func TestSubordinateIDsOfOthersAreFound(t *testing.T) {
	const file = "# comment:1:2\nann:100000:65536\nkubelet:1000000000:7208960\nbroken\n"
	for _, tt := range []struct {
		base, count uint32
		want        string
	}{
		{1_500_000_000, 65536, ""},
		{1_000_000_000 - 65536, 65536, ""},
		{1_000_000_000 - 65535, 65536, "kubelet:1000000000:7208960"},
		{1_007_208_959, 65536, "kubelet:1000000000:7208960"},
		{65536, 65536, "ann:100000:65536"},
	} {
		if got, _ := idsOverlap(file, tt.base, tt.count); got != tt.want {
			t.Errorf("pool %d+%d: %q, want %q", tt.base, tt.count, got, tt.want)
		}
	}
	for _, bad := range [][2]uint32{{1000, 65536}, {1 << 30, 1000}, {1 << 31, 65536}, {1<<31 - 65536, 131072}} {
		if checkIDs(bad[0], bad[1]) == nil {
			t.Errorf("pool %v is accepted", bad)
		}
	}
}

func TestAHungProbeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		res := bounded(t.Context(), func(ctx context.Context) result {
			<-ctx.Done()
			return result{state: Missing, detail: ctx.Err().Error()}
		})
		if res.state != Missing || !strings.Contains(res.detail, "deadline") {
			t.Errorf("result = %+v", res)
		}
	})
}

func TestAddressesInUseAreDegraded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if res := tcpFree(t.Context(), l.Addr().String()); res.state != Degraded {
		t.Errorf("used port: %+v", res)
	}
	path := filepath.Join(t.TempDir(), "s")
	if res := unixFree(t.Context(), path); res.state != OK {
		t.Errorf("free socket: %+v", res)
	}
	u, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	if res := unixFree(t.Context(), path); res.state != Degraded {
		t.Errorf("used socket: %+v", res)
	}
	if res := unixFree(t.Context(), strings.Repeat("x", 108)); res.state != Missing {
		t.Errorf("long path: %+v", res)
	}
}

func TestOldAndAbsentProgramsAreMissing(t *testing.T) {
	dir := t.TempDir()
	script := func(name, says string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("#!/bin/sh\ncat <<'E'\n"+says+"\nE\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ctx := t.Context()
	if res := program(ctx, script("old", "containerd x 1.7.3"), 2, 0); res.state != Missing || !strings.Contains(res.detail, "1.7.3") {
		t.Errorf("old: %+v", res)
	}
	if res := program(ctx, script("new", "containerd x v2.4.2"), 2, 0); res.state != OK || res.detail != "2.4.2" {
		t.Errorf("new: %+v", res)
	}
	if res := program(ctx, filepath.Join(dir, "none"), 2, 0); res.state != Missing {
		t.Errorf("absent: %+v", res)
	}
	if res := runcSeccomp(ctx, script("r1", "runc version 1.5.2\nlibseccomp: 2.5.4")); res.state != OK {
		t.Errorf("with seccomp: %+v", res)
	}
	if res := runcSeccomp(ctx, script("r2", "runc version 1.5.2")); res.state != Missing {
		t.Errorf("without seccomp: %+v", res)
	}
	crun := script("crun", "crun version 1.8.1\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL")
	if res := otherRuntime(ctx, "crun", "/nowhere:"+dir); res.state != OK || res.detail != "1.8.1, "+crun {
		t.Errorf("another runtime: %+v", res)
	}
	if res := otherRuntime(ctx, script("plain", "crun version 1.8.1\n+SYSTEMD -SECCOMP"), ""); res.state != Missing || !strings.Contains(res.detail, "seccomp") {
		t.Errorf("a runtime without seccomp: %+v", res)
	}
	if res := otherRuntime(ctx, "none", dir); res.state != Missing || !strings.Contains(res.mend, "containerd.runtimes") {
		t.Errorf("an absent runtime: %+v", res)
	}
	if res := answering(ctx, filepath.Join(dir, "sock")); res.state != Missing {
		t.Errorf("dead containerd: %+v", res)
	}
}

func TestResultsKeepTheirErrorAndMend(t *testing.T) {
	err := errors.New("why")
	if res := orDegraded(err, "how"); res != (result{state: Degraded, detail: "why", mend: "how"}) {
		t.Errorf("%+v", res)
	}
	if res := orMissing(nil, "how"); res != (result{state: OK}) {
		t.Errorf("%+v", res)
	}
}

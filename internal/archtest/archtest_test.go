package archtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCodeFollowsTheImportTable(t *testing.T) {
	files, err := load(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("go list found %d files; the check would check nothing", len(files))
	}
	for _, fault := range check(files) {
		t.Error(fault)
	}
}

// TestFixtureBreaksEveryRule runs the whole check, go list included, on a
// module that breaks each rule once.
func TestFixtureBreaksEveryRule(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/broken")); err != nil {
		t.Fatal(err)
	}
	// A file of this name in testdata would make it a module of its own, which
	// tools that walk the tree would pick up.
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module hearth\n\ngo 1.26\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := "package env\n" + strings.Repeat("\n", maxLines)
	if err := os.WriteFile(filepath.Join(dir, "internal/env/long.go"), []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := check(files)
	golden, err := os.ReadFile("testdata/broken.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(strings.TrimSpace(string(golden)), "\n"), got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestCheckImport(t *testing.T) {
	const allowed = ""
	tests := map[string]struct {
		file     file
		imported string
		want     string
	}{
		"env uses the standard library": {
			file{pkgPath: "internal/env", name: "ids.go"}, "crypto/rand", allowed,
		},
		"env uses nothing else": {
			file{pkgPath: "internal/env", name: "ids.go"}, "golang.org/x/net/idna", "standard library only",
		},
		"env's tests may compare with cmp": {
			file{pkgPath: "internal/env", name: "ids_test.go", test: true}, "github.com/google/go-cmp/cmp", allowed,
		},
		"a mechanic knows the vocabulary": {
			file{pkgPath: "internal/durable", name: "log.go"}, "hearth/internal/env", allowed,
		},
		"a mechanic does not know the domain": {
			file{pkgPath: "internal/durable", name: "log.go"}, "hearth/internal/warm", "may not",
		},
		"config decodes the API's types": {
			file{pkgPath: "internal/config", name: "load.go"}, "hearth/api/v1alpha1", allowed,
		},
		"domain packages do not import each other": {
			file{pkgPath: "internal/warm", name: "claim.go"}, "hearth/internal/netpol", "may not",
		},
		"not even in tests": {
			file{pkgPath: "internal/warm", name: "claim_test.go", test: true}, "hearth/internal/netpol", "may not",
		},
		"fleet uses placement": {
			file{pkgPath: "internal/fleet", name: "run.go"}, "hearth/internal/placement", allowed,
		},
		"fleet does not use warm": {
			file{pkgPath: "internal/fleet", name: "run.go"}, "hearth/internal/warm", "may not",
		},
		"placement does not use fleet": {
			file{pkgPath: "internal/placement", name: "score.go"}, "hearth/internal/fleet", "may not",
		},
		"the domain does not use an adapter": {
			file{pkgPath: "internal/warm", name: "claim.go"}, "hearth/internal/ctrd", "may not",
		},
		"an adapter uses the domain": {
			file{pkgPath: "internal/rpc", name: "node.go"}, "hearth/internal/warm", allowed,
		},
		"a package uses its own subtree": {
			file{pkgPath: "internal/detect", name: "run.go"}, "hearth/internal/detect/evidence", allowed,
		},
		"a subpackage has its parent's rights": {
			file{pkgPath: "internal/detect/evidence", name: "bundle.go"}, "hearth/internal/snapshot", "may not",
		},
		"the wire format stands on nothing": {
			file{pkgPath: "internal/guest/wire", name: "frame.go"}, "hearth/internal/env", "may not",
		},
		"not even on guest": {
			file{pkgPath: "internal/guest/wire", name: "frame.go"}, "hearth/internal/guest", "standard library only",
		},
		"guest speaks the wire format": {
			file{pkgPath: "internal/guest", name: "conn.go"}, "hearth/internal/guest/wire", allowed,
		},
		"envinit speaks the wire format": {
			file{pkgPath: "cmd/envinit", name: "main.go"}, "hearth/internal/guest/wire", allowed,
		},
		"envinit does not carry the host's side": {
			file{pkgPath: "cmd/envinit", name: "main.go"}, "hearth/internal/guest", "may not",
		},
		"a program wires everything": {
			file{pkgPath: "cmd/nodeagent", name: "wire.go"}, "hearth/internal/ctrd", allowed,
		},
		"programs do not import each other": {
			file{pkgPath: "cmd/nodeagent", name: "wire.go"}, "hearth/cmd/controller/serve", "may not",
		},
		"kerneltest stays in tests": {
			file{pkgPath: "internal/netpol", name: "attach_linux.go"}, "hearth/internal/kerneltest", "outside a test",
		},
		"kerneltest is for tests": {
			file{pkgPath: "internal/netpol", name: "attach_linux_test.go", test: true}, "hearth/internal/kerneltest", allowed,
		},
		"a package's own test support may use it": {
			file{pkgPath: "internal/guest/guesttest", name: "start_linux.go"}, "hearth/internal/kerneltest", allowed,
		},
		"test support has its parent's rights": {
			file{pkgPath: "internal/guest/guesttest", name: "start_linux.go"}, "hearth/internal/rpc", "may not",
		},
		"the guest API serves what guest speaks": {
			file{pkgPath: "internal/rpc/guestapi", name: "exec.go"}, "hearth/internal/guest", allowed,
		},
		"guest does not know who serves it": {
			file{pkgPath: "internal/guest", name: "conn.go"}, "hearth/internal/rpc", "may not",
		},
		"a package outside the table imports nothing of ours": {
			file{pkgPath: "internal/misplaced", name: "x.go"}, "hearth/internal/env", "no place in the import table",
		},
		"eBPF is for those who load programs": {
			file{pkgPath: "internal/warm", name: "claim.go"}, "github.com/cilium/ebpf/link", "belongs to",
		},
		"netpol loads programs": {
			file{pkgPath: "internal/netpol", name: "attach_linux.go"}, "github.com/cilium/ebpf/link", allowed,
		},
		"one file of snapshot reads hints": {
			file{pkgPath: "internal/snapshot", name: "dirty_linux.go"}, "github.com/cilium/ebpf", allowed,
		},
		"no other file of snapshot does": {
			file{pkgPath: "internal/snapshot", name: "walk_linux.go"}, "github.com/cilium/ebpf", "belongs to",
		},
		"a fence is a path, not a prefix": {
			file{pkgPath: "internal/warm", name: "claim.go"}, "github.com/containerdish/thing", allowed,
		},
		"containerd is for ctrd": {
			file{pkgPath: "internal/snapshot", name: "mount.go"}, "github.com/containerd/containerd/v2/core/mount", "belongs to",
		},
		"client-go is for kube": {
			file{pkgPath: "cmd/controller", name: "wire.go"}, "k8s.io/client-go/rest", "belongs to",
		},
		"system calls are in files that say so": {
			file{pkgPath: "internal/cgroups", name: "freeze.go"}, "golang.org/x/sys/unix", "_linux.go",
		},
		"and there they are welcome": {
			file{pkgPath: "internal/cgroups", name: "freeze_linux.go"}, "golang.org/x/sys/unix", allowed,
		},
		"in tests too": {
			file{pkgPath: "internal/cgroups", name: "freeze_linux_test.go", test: true}, "golang.org/x/sys/unix", allowed,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := checkImport(tt.file, tt.imported)
			if (tt.want == allowed) != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("checkImport(%s/%s, %s) = %q, want %q in it", tt.file.pkgPath, tt.file.name, tt.imported, got, tt.want)
			}
		})
	}
}

func TestCheckAcceptsAGeneratedLongFile(t *testing.T) {
	files := []file{{pkgPath: "bpf", name: "island_bpfel.go", lines: 9000, generated: true, hasDoc: true}}
	if faults := check(files); len(faults) > 0 {
		t.Error(faults)
	}
}

func TestCheckNamesAPackageWithoutAComment(t *testing.T) {
	files := []file{{pkgPath: "internal/env", name: "ids.go"}, {pkgPath: "internal/env", name: "ids_test.go", test: true, hasDoc: true}}
	if faults := check(files); !slices.Equal(faults, []string{"internal/env: no package comment (doc.go)"}) {
		t.Error(faults)
	}
}

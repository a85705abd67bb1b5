package ctrd

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"

	"hearth/internal/env"
)

// A class names the program that makes its containers. All of them are started by
// runc's shim, so they must have runc's command line, and since slots are frozen,
// watched and spoken to through the node's kernel, they must make containers of it:
// a sandbox with a kernel of its own has no process whose files and sockets the
// agent could open.

// labelRuntime of a container is the name of its runtime.
const labelRuntime = "hearth.run/runtime"

func nameOf(runtime string) string { return cmp.Or(runtime, env.DefaultRuntime) }

// foundRuntimes are those that containerd was seen to find.
type foundRuntimes struct {
	mu    sync.Mutex // guards names
	names map[string]bool
}

func (f *foundRuntimes) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.names[name]
}

func (f *foundRuntimes) note(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		f.names = map[string]bool{}
	}
	f.names[name] = true
}

// doubt has containerd asked again: a container could not be made.
func (f *foundRuntimes) doubt(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, name)
}

// program is what a runtime of that name is started by: a path, a name for
// containerd's PATH, or "" for its own default. One that is not there is
// env.ErrUnsupported. Where it is found is containerd's matter, whose files this
// process may not see, so containerd is asked, once and after failures.
func (r *Runtime) program(ctx context.Context, name string) (string, error) {
	if name = nameOf(name); name == env.DefaultRuntime {
		return r.cfg.RuntimeBinary, nil
	}
	program, known := r.cfg.Runtimes[name]
	if !known {
		names := append(slices.Sorted(maps.Keys(r.cfg.Runtimes)), env.DefaultRuntime)
		return "", &env.UnsupportedError{Feature: "runtime " + name,
			Needs: fmt.Sprintf("a program of that name in containerd.runtimes of the node's configuration, which has %s", strings.Join(names, ", "))}
	}
	if r.found.has(name) {
		return program, nil
	}
	ctx, cancel := context.WithTimeout(r.namespaced(ctx), r.cfg.StartTimeout)
	defer cancel()
	_, err := r.client.RuntimeInfo(ctx, runtimeName, &options.Options{BinaryName: program})
	switch {
	case err == nil:
		r.found.note(name)
		return program, nil
	case strings.Contains(err.Error(), "look up the path of"): // exec.LookPath's, of the shim
		return "", &env.UnsupportedError{Feature: "runtime " + name,
			Needs: fmt.Sprintf("the program %s where containerd runs; install it, or set containerd.runtimes.%s to its path", program, name)}
	}
	return "", r.fail("ask containerd for runtime "+name, err)
}

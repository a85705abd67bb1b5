package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// programProbes are those of what runs on the kernel: containerd, runc, the
// id pool and the addresses to listen on.
func programProbes(in Input) []probe {
	var ps []probe
	if in.ContainerdBin != "" {
		ps = append(ps, probe{"containerd", "version", true, func(ctx context.Context) result {
			return program(ctx, in.ContainerdBin, 2, 0)
		}})
	}
	if in.ContainerdSock != "" {
		ps = append(ps, probe{"containerd", "socket", true, func(ctx context.Context) result {
			return answering(ctx, in.ContainerdSock)
		}})
	}
	if in.RuncBin != "" {
		ps = append(ps, probe{"runc", "version", true, func(ctx context.Context) result {
			return program(ctx, in.RuncBin, 1, 2)
		}}, probe{"runc", "seccomp", true, func(ctx context.Context) result {
			return runcSeccomp(ctx, in.RuncBin)
		}})
	}
	for _, name := range slices.Sorted(maps.Keys(in.Runtimes)) {
		ps = append(ps, probe{"runtimes", name, false, func(ctx context.Context) result {
			return otherRuntime(ctx, in.Runtimes[name], in.RuntimePath)
		}})
	}
	if in.IDCount != 0 {
		ps = append(ps, probe{"ids", "pool", true, func(context.Context) result { return idPool(in.IDBase, in.IDCount) }})
	}
	for _, addr := range in.Listen {
		ps = append(ps, probe{"sockets", addr, false, func(ctx context.Context) result { return tcpFree(ctx, addr) }})
	}
	for _, path := range in.Sockets {
		ps = append(ps, probe{"sockets", path, false, func(ctx context.Context) result { return unixFree(ctx, path) }})
	}
	return ps
}

// programTimeout bounds a program's --version.
const programTimeout = 5 * time.Second

func versionText(ctx context.Context, bin string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("run %s --version: %w", bin, err)
	}
	return string(out[:min(len(out), 4096)]), nil
}

func program(ctx context.Context, bin string, major, minor int) result {
	mend := fmt.Sprintf("install version %d.%d or newer, or configure its path", major, minor)
	text, err := versionText(ctx, bin)
	if err != nil {
		return no(err, mend)
	}
	v, err := findVersion(text)
	if err != nil {
		return no(err, mend)
	}
	if !v.atLeast(major, minor) {
		return no(fmt.Errorf("%s is version %s", bin, v), mend)
	}
	return yes(v.String())
}

var seccompLine = regexp.MustCompile(`(?m)^libseccomp: (\S+)`)

func runcSeccomp(ctx context.Context, bin string) result {
	const mend = "use a runc that is built with the tag seccomp"
	text, err := versionText(ctx, bin)
	if err != nil {
		return no(err, mend)
	}
	m := seccompLine.FindStringSubmatch(text)
	if m == nil {
		return no(errors.New("runc is built without seccomp"), mend)
	}
	return yes("libseccomp " + m[1])
}

// seccompWords say in a runtime's version that it can filter system calls: runc's
// line, and crun's list of what it is built with.
var seccompWords = regexp.MustCompile(`(?m)^libseccomp: |\+SECCOMP\b`)

// otherRuntime looks at a program that classes may name in place of runc.
func otherRuntime(ctx context.Context, program, path string) result {
	const mend = "install it, or give its path in containerd.runtimes; until then pools of classes that name it stay empty. An agent in a container of its own does not see the node's programs: there the pools' messages count"
	bin, err := findProgram(program, path)
	if err != nil {
		return no(err, mend)
	}
	text, err := versionText(ctx, bin)
	if err != nil {
		return no(err, mend)
	}
	v, err := findVersion(text)
	if err != nil {
		return no(err, mend)
	}
	if !seccompWords.MatchString(text) {
		return no(fmt.Errorf("%s %s does not say that it is built with seccomp", bin, v), "use one that is built with seccomp")
	}
	return yes(v.String() + ", " + bin)
}

// findProgram is exec.LookPath with another PATH.
func findProgram(program, path string) (string, error) {
	if strings.Contains(program, "/") {
		_, err := os.Stat(program)
		return program, err
	}
	for _, dir := range filepath.SplitList(path) {
		bin := filepath.Join(dir, program)
		if info, err := os.Stat(bin); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return bin, nil
		}
	}
	return "", fmt.Errorf("%s is in no directory of PATH", program)
}

func answering(ctx context.Context, path string) result {
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return no(err, "start containerd, or configure its socket")
	}
	_ = conn.Close()
	return yes(path)
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return d.DialContext(ctx, "unix", path)
}

func idPool(base, count uint32) result {
	const mend = "configure a pool of multiples of 65536 ids below 2^31 that nothing else uses"
	if err := checkIDs(base, count); err != nil {
		return no(err, mend)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		b, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return no(err, mend)
		}
		if line, found := idsOverlap(string(b), base, count); found {
			return no(fmt.Errorf("%s gives ids of the pool away: %s", file, line), mend)
		}
	}
	return yes(fmt.Sprintf("%d slots from %d", count/65536, base))
}

// tcpFree really listens. In use is not missing: a running agent has it.
func tcpFree(ctx context.Context, addr string) result {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return orDegraded(err, "if it is not a running agent that listens there, stop that program or configure another address")
	}
	return orMissing(l.Close(), "")
}

const maxSocketPath = 107 // unix(7): sun_path less the final zero

func unixFree(ctx context.Context, path string) result {
	if len(path) > maxSocketPath {
		return no(fmt.Errorf("the path has %d bytes; a socket's may have %d", len(path), maxSocketPath), "configure a shorter directory")
	}
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return yes("free")
	}
	_ = conn.Close()
	return orDegraded(errors.New("something answers there"), "if it is not a running agent, stop that program")
}

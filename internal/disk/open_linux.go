package disk

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// Open loads the counters and looks at the disks; it starts nothing. The error
// is env.ErrUnsupported if this kernel cannot count, and names the path of a
// disk that cannot be looked at.
func Open(cfg Config, log *slog.Logger) (*Guard, error) {
	paths, err := distinct(cfg.Paths)
	if err != nil {
		return nil, err
	}
	cfg.Paths = paths
	p, err := loadPrograms(log)
	if err != nil {
		return nil, err
	}
	g, err := newGuard(cfg, p, statfs, log)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return g, nil
}

// distinct keeps one path of each filesystem, the first.
func distinct(paths []string) ([]string, error) {
	var out []string
	seen := map[uint64]bool{}
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return nil, fmt.Errorf("look at the disk of %s: %w", p, err)
		}
		if !seen[st.Dev] {
			seen[st.Dev] = true
			out = append(out, p)
		}
	}
	return out, nil
}

// statfs is what the kubelet looks at too.
func statfs(path string) (Space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return Space{}, err
		}
	}
	unit := uint64(st.Frsize)
	return Space{Bytes: st.Blocks * unit, FreeBytes: st.Bavail * unit, Files: st.Files, FreeFiles: st.Ffree}, nil
}

// programs are the loaded counters.
type programs struct {
	objects bpf.WritesObjects
	links   []link.Link
}

// makers count new files; each belongs to a filesystem that a kernel may lack.
var makers = map[string]string{
	bpf.WritesProgOnExt4File: "ext4", bpf.WritesProgOnXfsFile: "xfs", bpf.WritesProgOnXfsSymlink: "xfs",
}

func loadPrograms(log *slog.Logger) (*programs, error) {
	spec, err := bpf.LoadWrites()
	if err != nil {
		return nil, fmt.Errorf("read disk counters: %w", err)
	}
	if err := spec.Variables[bpf.WritesVarPageSize].Set(uint32(os.Getpagesize())); err != nil {
		return nil, fmt.Errorf("set page size of disk counters: %w", err)
	}
	p := &programs{}
	if err := p.load(spec, log); err != nil {
		return nil, errors.Join(unsupported(err), p.close())
	}
	return p, nil
}

func (p *programs) load(spec *ebpf.CollectionSpec, log *slog.Logger) error {
	if err := spec.LoadAndAssign(&p.objects.WritesMaps, nil); err != nil {
		return fmt.Errorf("load maps of disk counters: %w", err)
	}
	shared := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{bpf.WritesMapWriters: p.objects.Writers}}
	for name, program := range map[string]**ebpf.Program{
		bpf.WritesProgOnDirty: &p.objects.OnDirty, bpf.WritesProgOnBio: &p.objects.OnBio,
		bpf.WritesProgOnExt4File: &p.objects.OnExt4File, bpf.WritesProgOnXfsFile: &p.objects.OnXfsFile,
		bpf.WritesProgOnXfsSymlink: &p.objects.OnXfsSymlink,
	} {
		err := p.attach(spec, name, shared, program)
		if fs, extra := makers[name]; extra && errors.Is(err, ebpf.ErrNotSupported) {
			log.Info("files made are not counted on a kind of filesystem that this kernel does not have", "filesystem", fs)
			continue
		}
		if err != nil {
			return fmt.Errorf("load disk counter %s: %w", name, err)
		}
	}
	return nil
}

// attach loads one program alone, so that the others do not depend on it.
func (p *programs) attach(all *ebpf.CollectionSpec, name string, shared ebpf.CollectionOptions, into **ebpf.Program) error {
	one := all.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
	loaded, err := ebpf.NewCollectionWithOptions(one, shared)
	if err != nil {
		return err
	}
	defer loaded.Close()
	*into = loaded.DetachProgram(name)
	l, err := link.AttachTracing(link.TracingOptions{Program: *into})
	if err != nil {
		return err
	}
	p.links = append(p.links, l)
	return nil
}

// unsupported gives a kernel's refusal its type.
func unsupported(err error) error {
	var verifier *ebpf.VerifierError
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrNotExist) || errors.As(err, &verifier) {
		return fmt.Errorf("%w: %w", &env.UnsupportedError{
			Feature: "the disk guard's counters (tp_btf)", Needs: "Linux 6.1 with BTF, CAP_BPF and CAP_PERFMON",
		}, err)
	}
	return err
}

func (p *programs) watch(cgroup uint64) error {
	err := p.objects.Writers.Update(cgroup, &bpf.WritesWritten{}, ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return fmt.Errorf("%w: cgroup %d", env.ErrExists, cgroup)
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w: %d cgroups are watched", env.ErrExhausted, p.objects.Writers.MaxEntries())
	}
	return err
}

func (p *programs) unwatch(cgroup uint64) error {
	if err := p.objects.Writers.Delete(cgroup); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func (p *programs) read(cgroup uint64) (Written, error) {
	var w bpf.WritesWritten
	err := p.objects.Writers.Lookup(cgroup, &w)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Written{}, fmt.Errorf("%w: cgroup %d", env.ErrNotFound, cgroup)
	}
	return Written{Bytes: w.Bytes, Files: w.Files}, err
}

func (p *programs) close() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, p.objects.Close())...)
}

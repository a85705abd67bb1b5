// Mkimage makes small OCI images, as archives in the OCI image layout that
// `ctr images import`, skopeo and crane read, without a registry, a container
// engine or root: from programs (-file), from a root file system as a tar
// (-layer), or from a static busybox (-busybox).
// The same files give the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// options are the command line.
type options struct {
	busybox, arch, out string
	layer              string
	refs, files, entry list
	user, version      string
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	flags.StringVar(&o.busybox, "busybox", "/bin/busybox", "statically linked busybox, for an image without -file and -layer")
	flags.StringVar(&o.layer, "layer", "", "uncompressed tar that is the image's root file system")
	flags.StringVar(&o.arch, "arch", "amd64", "the image's architecture")
	flags.StringVar(&o.out, "o", "busybox.tar", "archive to write")
	flags.StringVar(&o.user, "user", "", "uid:gid that the program runs as; default is root")
	flags.StringVar(&o.version, "version", "", "version to write into the image's labels")
	flags.Var(&o.refs, "ref", "the image's name, host/path:tag; may be repeated (default hearth.local/busybox:1)")
	flags.Var(&o.files, "file", "SOURCE=/path: a static program of the image; may be repeated")
	flags.Var(&o.entry, "entrypoint", "word of the command that the image runs; may be repeated")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if len(o.files) > 0 && (len(o.refs) == 0 || len(o.entry) == 0) {
		return o, errors.New("-file needs -ref and -entrypoint")
	}
	if o.layer != "" && (len(o.refs) == 0 || len(o.files) > 0) {
		return o, errors.New("-layer needs -ref, and excludes -file")
	}
	if len(o.refs) == 0 {
		o.refs = list{"hearth.local/busybox:1"}
	}
	return o, nil
}

func run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	spec, err := specOf(o)
	if err != nil {
		return err
	}
	img, err := build(spec)
	if err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	files, err := archive(img, o.refs)
	if err != nil {
		return err
	}
	return replaceFile(o.out, func(w io.Writer) error { return writeTar(w, files) })
}

// specOf reads what the command line names.
func specOf(o options) (spec, error) {
	if len(o.files) > 0 {
		entries, err := programs(o.files)
		if err != nil {
			return spec{}, err
		}
		return spec{arch: o.arch, rootfs: entries, entrypoint: o.entry, user: o.user, workDir: "/", version: o.version}, nil
	}
	if o.layer != "" {
		return spec{arch: o.arch, layer: o.layer, entrypoint: o.entry, cmd: []string{"/bin/sh"}, user: o.user, workDir: "/workspace", version: o.version}, nil
	}
	binary, err := os.ReadFile(o.busybox)
	if err != nil {
		return spec{}, fmt.Errorf("read busybox (Debian: busybox-static): %w", err)
	}
	applets, err := appletPaths(o.busybox)
	if err != nil {
		return spec{}, err
	}
	return spec{arch: o.arch, rootfs: rootfs(binary, applets), cmd: []string{"/bin/sh"}, user: o.user, workDir: "/workspace", version: o.version}, nil
}

// appletPaths asks busybox for the paths of its applets, relative to the root.
func appletPaths(busybox string) ([]string, error) {
	listing, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	return strings.Fields(string(listing)), nil
}

// replaceFile writes beside path and renames, so that an interrupted run leaves
// no half an archive behind.
func replaceFile(path string, write func(io.Writer) error) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".mkimage-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := write(temp); err != nil {
		temp.Close()
		return err
	}
	if err := temp.Chmod(0o644); err != nil {
		temp.Close()
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// Mkimage makes a small OCI image from a static busybox, as an archive in the
// OCI image layout, without a registry, a container engine or root. The same
// busybox gives the same bytes.
package main

import (
	"archive/tar"
	"bytes"
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

func run(args []string) error {
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	busybox := flags.String("busybox", "/bin/busybox", "statically linked busybox")
	ref := flags.String("ref", "hearth.local/busybox:1", "the image's name")
	arch := flags.String("arch", "amd64", "the image's architecture")
	out := flags.String("o", "busybox.tar", "archive to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	binary, err := os.ReadFile(*busybox)
	if err != nil {
		return fmt.Errorf("read busybox (Debian: busybox-static): %w", err)
	}
	applets, err := appletPaths(*busybox)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, rootfs(binary, applets)); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	files, err := layout(*ref, *arch, layer.Bytes())
	if err != nil {
		return err
	}
	return replaceFile(*out, func(w io.Writer) error { return writeTar(w, files) })
}

// appletPaths asks busybox for the paths of its applets, relative to the root.
func appletPaths(busybox string) ([]string, error) {
	listing, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	return strings.Fields(string(listing)), nil
}

// writeTar writes entries in the given order with nothing in them that depends
// on when, where or by whom it is run.
func writeTar(w io.Writer, entries []entry) error {
	archive := tar.NewWriter(w)
	for _, e := range entries {
		header := &tar.Header{
			Format:   tar.FormatUSTAR,
			Name:     e.name,
			Typeflag: e.kind,
			Linkname: e.target,
			Mode:     e.mode,
			Size:     int64(len(e.data)),
		}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if _, err := archive.Write(e.data); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return archive.Close()
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

package main

import (
	"archive/tar"
	"fmt"
	"io"
)

// entry is one member of an archive.
type entry struct {
	name   string
	kind   byte // of archive/tar
	mode   int64
	target string // of a symbolic link
	data   []byte
}

func directory(name string, mode int64) entry {
	return entry{name: name + "/", kind: tar.TypeDir, mode: mode}
}

func file(name string, mode int64, data string) entry {
	return entry{name: name, kind: tar.TypeReg, mode: mode, data: []byte(data)}
}

func link(name, target string) entry {
	return entry{name: name, kind: tar.TypeSymlink, mode: 0o777, target: target}
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

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
	// open gives the content, of size bytes, in place of data.
	open func() (io.ReadCloser, error)
	size int64
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
			Size:     max(int64(len(e.data)), e.size),
		}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if err := e.copyTo(archive); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return archive.Close()
}

func (e entry) copyTo(w io.Writer) error {
	if e.open == nil {
		_, err := w.Write(e.data)
		return err
	}
	content, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(w, content)
	return err
}

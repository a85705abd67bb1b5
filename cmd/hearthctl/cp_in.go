package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	hearthv1 "hearth/api/hearth/v1"
)

// fileChunk is how much of a file one message carries.
const fileChunk = 256 << 10

// writeFile streams r into a file inside; mode 0 is 0644.
func writeFile(ctx context.Context, g *guest, remote string, mode uint32, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // an upload that is not closed is discarded
	stream, err := g.WriteFile(ctx)
	if err != nil {
		return err
	}
	open := &hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: remote, Mode: mode, Parents: true}}
	if err := stream.Send(open); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var sent uint64
	buf := make([]byte, fileChunk)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			sent += uint64(n)
			if stream.Send(&hearthv1.WriteFileRequest{Data: buf[:n]}) != nil {
				break // the answer says why
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read for %s: %w", remote, err)
		}
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		return fmt.Errorf("write %s: %w", remote, err)
	}
	if res.GetSize() != sent {
		return fmt.Errorf("write %s: sent %d bytes, the environment has %d", remote, sent, res.GetSize())
	}
	return nil
}

// uploader copies one tree in.
type uploader struct {
	a     *app
	g     *guest
	empty []string // directories to make, since no file makes them
	links [][2]string
}

func (a *app) uploadTree(ctx context.Context, g *guest, local, remote string) error {
	u := &uploader{a: a, g: g, empty: nil}
	root, err := os.OpenRoot(local)
	if err != nil {
		return err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return u.entry(ctx, root, name, path.Join(remote, encodeName(name)), d)
	})
	if err != nil {
		return err
	}
	return u.finish(ctx)
}

func (u *uploader) entry(ctx context.Context, root *os.Root, name, remote string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		entries, err := fs.ReadDir(root.FS(), name)
		if err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Type().IsRegular() }) {
			u.empty = append(u.empty, remote)
		}
		return err
	case d.Type()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		u.links = append(u.links, [2]string{target, remote})
		return err
	case d.Type().IsRegular():
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		return writeFile(ctx, u.g, remote, uint32(st.Mode().Perm()), f)
	default:
		fmt.Fprintf(u.a.stderr, "hearthctl: left out %s: neither file, directory nor link\n", filepath.Join(root.Name(), name))
		return nil
	}
}

// mkdirBatch keeps one command line short.
const mkdirBatch = 100

// finish makes what the file calls cannot: directories without files, links.
func (u *uploader) finish(ctx context.Context) error {
	for batch := range slices.Chunk(u.empty, mkdirBatch) {
		if err := u.command(ctx, append([]string{"mkdir", "-p", "--"}, batch...)); err != nil {
			return fmt.Errorf("make directories: %w", err)
		}
	}
	for _, l := range u.links {
		if err := u.command(ctx, []string{"ln", "-s", "-f", "-n", "--", l[0], l[1]}); err != nil {
			return fmt.Errorf("make link %s: %w", l[1], err)
		}
	}
	return nil
}

// command runs one of the image's tools and fails with what it says.
func (u *uploader) command(ctx context.Context, words []string) error {
	stream, err := u.g.Exec(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	start := &hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: &hearthv1.ExecStart{Command: words}}}
	if err := stream.Send(start); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_ = stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_CloseStdin{CloseStdin: true}})
	said := boundedText{max: 1 << 10}
	s := &session{stream: stream}
	first, err := stream.Receive()
	if err != nil {
		return fmt.Errorf("%s, which the image must have: %w", words[0], lost(err))
	}
	code, err := s.receiveLoop(first, io.Discard, &said)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s, which the image must have, exited with %d: %s", words[0], code, printable(string(said.text)))
	}
	return err
}

// boundedText keeps the beginning of what is written to it.
type boundedText struct {
	max  int
	text []byte
}

func (b *boundedText) Write(p []byte) (int, error) {
	b.text = append(b.text, p[:min(len(p), b.max-len(b.text))]...)
	return len(p), nil
}

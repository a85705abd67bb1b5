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
	"strings"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// The type bits of st_mode (inode(7)).
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeLink    = 0o120000
)

// maxDepth bounds a tree that an environment shows.
const maxDepth = 255

// readFile streams a file out; open is called once with what the file is.
func readFile(ctx context.Context, g *guest, remote string, open func(*hearthv1.FileInfo) (io.WriteCloser, error)) (*hearthv1.FileInfo, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.ReadFile(ctx, &hearthv1.ReadFileRequest{Path: remote})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var info *hearthv1.FileInfo
	var w io.WriteCloser
	for stream.Receive() {
		m := stream.Msg()
		if w == nil {
			if info = m.GetInfo(); info == nil {
				return nil, fmt.Errorf("read %s: %w: the answer begins without the file's stat", remote, env.ErrCorrupt)
			}
			if w, err = open(info); err != nil {
				return nil, err
			}
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	if err := stream.Err(); err != nil {
		err = fmt.Errorf("read %s: %w", remote, err)
		if w != nil {
			err = errors.Join(err, w.Close())
		}
		return nil, err
	}
	if w == nil {
		return nil, fmt.Errorf("read %s: %w: an empty answer", remote, env.ErrCorrupt)
	}
	return info, w.Close()
}

// downloader copies out of an environment, beneath root only: names from inside
// are checked, and a link that is written is never followed out of root.
type downloader struct {
	a    *app
	g    *guest
	root *os.Root
}

// file writes one file beside its place and renames it.
func (d *downloader) file(ctx context.Context, remote, local string) error {
	tmp := filepath.Join(filepath.Dir(local), ".hearthctl-"+newKey()[len("hearthctl-"):])
	info, err := readFile(ctx, d.g, remote, func(*hearthv1.FileInfo) (io.WriteCloser, error) {
		return d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	})
	if err == nil {
		err = d.root.Chmod(tmp, fs.FileMode(info.GetMode()&0o777))
	}
	if err == nil {
		err = d.root.Rename(tmp, local)
	}
	if err != nil {
		_ = d.root.Remove(tmp)
		return err
	}
	if t := info.GetModified(); t.IsValid() {
		_ = d.root.Chtimes(local, t.AsTime(), t.AsTime()) // a wish, not a promise
	}
	return nil
}

// tree copies a directory.
func (d *downloader) tree(ctx context.Context, remote, local string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("read %s: %w: more than %d directories deep", remote, env.ErrInvalid, maxDepth)
	}
	if err := d.root.MkdirAll(local, 0o755); err != nil {
		return err
	}
	for token := ""; ; {
		r, err := d.g.ListDir(ctx, &hearthv1.ListDirRequest{Path: remote, PageToken: token})
		if err != nil {
			return fmt.Errorf("list %s: %w", remote, err)
		}
		for _, e := range r.GetEntries() {
			if err := d.entry(ctx, remote, local, e, depth); err != nil {
				return err
			}
		}
		if token = r.GetNextPageToken(); token == "" {
			return nil
		}
	}
}

func (d *downloader) entry(ctx context.Context, remote, local string, e *hearthv1.FileInfo, depth int) error {
	name := e.GetName()
	here := decodeName(name)
	if here == "" || here == "." || here == ".." || strings.ContainsAny(here, "/\x00") || !filepath.IsLocal(here) {
		return fmt.Errorf("list %s: %w: the environment names an entry %.64q", remote, env.ErrCorrupt, name)
	}
	from, to := path.Join(remote, name), filepath.Join(local, here)
	switch e.GetMode() & modeType {
	case modeDir:
		if err := d.tree(ctx, from, to, depth+1); err != nil {
			return err
		}
		// The owner's bits stay, or the copy could not be finished or removed.
		return d.root.Chmod(to, fs.FileMode(e.GetMode()&0o777|0o700))
	case modeRegular:
		return d.file(ctx, from, to)
	case modeLink:
		if err := d.root.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return d.root.Symlink(decodeName(e.GetLinkTarget()), to)
	default:
		fmt.Fprintf(d.a.stderr, "hearthctl: left out %s: neither file, directory nor link\n", printable(from))
		return nil
	}
}

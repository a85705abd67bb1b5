package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// place is one side of a copy: a path in an environment, or a local one.
type place struct {
	id   string // "" is here
	path string
}

// parsePlace tells "e-…:/path" from local paths: no local path is taken for an
// environment unless it begins with a well-formed id and a colon.
func parsePlace(s string) (place, error) {
	head, rest, ok := strings.Cut(s, ":")
	if !ok {
		return place{path: s}, nil
	}
	id, err := env.ParseID(head)
	if err != nil {
		if strings.HasPrefix(head, "e-") && !strings.Contains(head, "/") {
			return place{}, usagef("%q is not an environment: write ./%s for a local file", head, s)
		}
		return place{path: s}, nil
	}
	if !path.IsAbs(rest) {
		return place{}, usagef("%q: want an absolute path behind the colon", s)
	}
	return place{id: string(id), path: encodeName(rest)}, nil
}

func (a *app) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files and directories into and out of an environment",
		Long: `Cp copies a file, or a directory with all that it holds, between this machine and
an environment. A path inside is written ENVIRONMENT:/path, and - is standard
input or output. Into a directory that exists, the source keeps its name.

Permission bits are kept; inside, everything belongs to root. Symbolic links are
copied as links. Devices, sockets and pipes are left out, and named. The copy
needs nothing in the image, except mkdir and ln for empty directories and links.`,
		Example: `  hearthctl cp main.py e-01ktz…:/workspace/
  hearthctl cp src e-01ktz…:/workspace/src
  hearthctl cp e-01ktz…:/var/log ./logs
  tar c . | hearthctl cp - e-01ktz…:/tmp/all.tar`,
		Args:              exactArgs("SOURCE", "DESTINATION"),
		ValidArgsFunction: a.completePlaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			dst, err := parsePlace(args[1])
			if err != nil {
				return err
			}
			return a.cancellable(cmd.Context(), func(ctx context.Context) error { return a.copy(ctx, src, dst) })
		},
	}
}

func (a *app) completePlaces(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if !strings.HasPrefix(word, "e-") || strings.Contains(word, ":") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ids, _ := a.completeEnvironments(cmd, nil, word)
	for i, id := range ids {
		name, about, _ := strings.Cut(id, "\t")
		ids[i] = cobra.CompletionWithDesc(name+":/", about)
	}
	return ids, cobra.ShellCompDirectiveNoSpace
}

func (a *app) copy(ctx context.Context, src, dst place) error {
	switch {
	case src.id != "" && dst.id != "":
		return usagef("one side must be local: copy out, then in")
	case src.id == "" && dst.id == "":
		return usagef("no side is an environment: write ENVIRONMENT:/path, as hearthctl list shows it")
	case dst.id != "":
		stop := a.progress("copying to " + dst.id)
		defer stop()
		if src.path != "-" {
			if _, err := os.Lstat(src.path); err != nil {
				return usagef("%s", err)
			}
		}
		return named("copy "+src.path+" to "+dst.id, a.inside(ctx, dst.id, func(g *guest) error { return a.upload(ctx, g, src.path, dst.path) }))
	default:
		stop := a.progress("copying from " + src.id)
		defer stop()
		return named("copy from "+src.id, a.inside(ctx, src.id, func(g *guest) error { return a.download(ctx, g, src.path, dst.path) }))
	}
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// isDir reports whether a path inside is a directory.
func isDir(ctx context.Context, g *guest, p string) (bool, error) {
	_, err := g.ListDir(ctx, &hearthv1.ListDirRequest{Path: p})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, env.ErrInvalid), errors.Is(err, env.ErrNotFound), errors.Is(err, env.ErrState) && !paused(ctx, g):
		return false, nil // a file, or nothing
	default:
		return false, err
	}
}

// paused tells a path's wrong state from the environment's.
func paused(ctx context.Context, g *guest) bool {
	_, err := g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"})
	return errors.Is(err, env.ErrState)
}

// upload copies a local file or tree in. The local side is trusted.
func (a *app) upload(ctx context.Context, g *guest, local, remote string) error {
	if local == "-" {
		if strings.HasSuffix(remote, "/") {
			return usagef("%s: standard input needs a file's name", remote)
		}
		return writeFile(ctx, g, remote, 0, a.stdin)
	}
	st, err := os.Stat(local)
	if err != nil {
		return err
	}
	into, err := isDir(ctx, g, remote)
	if err != nil {
		return err
	}
	if into || strings.HasSuffix(remote, "/") && !st.IsDir() {
		abs, err := filepath.Abs(local)
		if err != nil {
			return err
		}
		remote = path.Join(remote, encodeName(filepath.Base(abs)))
	}
	if st.IsDir() {
		return a.uploadTree(ctx, g, local, path.Clean(remote))
	}
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeFile(ctx, g, remote, uint32(st.Mode().Perm()), f)
}

// download copies a file or tree out of the environment, whose names and
// contents are foreign: everything is written beneath an os.Root.
func (a *app) download(ctx context.Context, g *guest, remote, local string) error {
	if local == "-" {
		_, err := readFile(ctx, g, remote, func(*hearthv1.FileInfo) (io.WriteCloser, error) { return nopCloser{a.stdout}, nil })
		return err
	}
	dir, err := isDir(ctx, g, remote)
	if err != nil {
		return err
	}
	parent, base := filepath.Dir(local), filepath.Base(local)
	if st, err := os.Stat(local); err == nil && st.IsDir() {
		parent, base = local, decodeName(path.Base(path.Clean(remote)))
		if base == "/" {
			base = "."
		}
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return usagef("%s", err)
	}
	defer root.Close()
	d := &downloader{a: a, g: g, root: root}
	if dir {
		return d.tree(ctx, path.Clean(remote), base, 0)
	}
	return d.file(ctx, remote, base)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

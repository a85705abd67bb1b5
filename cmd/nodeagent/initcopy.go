package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/ctrd"
	"hearth/internal/durable"
	"hearth/internal/env"
)

// Environments get a copy of envinit, named by its hash: the container runtime
// must find it at the same path as the agent, which an agent in a container
// cannot promise of its own files, and what runs must not change under it.

const (
	initPrefix = "envinit-"
	labelInit  = "hearth.run/init" // of a container: which copy it runs
	maxInit    = 64 << 20
)

// copyInit copies the binary into dir, unless the same is there, and returns
// the copy's name.
func copyInit(dir *durable.Dir, path string) (name string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open initPath: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInit+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read initPath: %w", err)
	case len(b) > maxInit:
		return "", fmt.Errorf("%w: initPath: %s has more than %d bytes: it is no envinit", env.ErrInvalid, path, maxInit)
	}
	name = initName(b)
	if have, err := dir.ReadFile(name, maxInit); err == nil && initName(have) == name {
		return name, nil
	}
	// The root of an environment is nobody here, and executes it.
	return name, dir.WriteFile("init", name, b, 0o755)
}

func initName(b []byte) string {
	sum := sha256.Sum256(b)
	return initPrefix + hex.EncodeToString(sum[:])
}

// pruneInits removes the copies that no container runs.
func pruneInits(ctx context.Context, dir *durable.Dir, runtime *ctrd.Runtime, current string) error {
	names, err := dir.List()
	if err != nil {
		return err
	}
	list, err := runtime.List(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{current: true}
	for _, c := range list {
		used[c.Labels[labelInit]] = true
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, initPrefix) && !used[name] {
			errs = append(errs, dir.Remove("init", name))
		}
	}
	return errors.Join(errs...)
}

// openInit makes the copy for new slots and opens the directory of all copies.
func (a *agent) openInit() (err error) {
	if a.inits, err = durable.OpenDir(filepath.Join(a.cfg.StateDir, "init"), nil); err != nil {
		return err
	}
	a.onClose(a.inits.Close)
	a.initCopy, err = copyInit(a.inits, a.cfg.InitPath)
	return err
}

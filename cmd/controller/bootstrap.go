package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"hearth/internal/durable"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc/controllerapi"
	"hearth/internal/rpc/pki"
)

// bootstrap writes what a first caller and a first agent need, both 0600.
type bootstrap struct {
	log       *slog.Logger
	dir       *durable.Dir
	fleet     *fleet.Fleet
	ca        *pki.CA
	tokenPath string
}

const (
	adminKeyFile = "admin.key"
	// joinLife is that of the token in joinTokenFile, which is replaced at half of it.
	joinLife = 24 * time.Hour
	maxToken = 1 << 10
)

func (b *bootstrap) run(now time.Time) error {
	if err := b.adminKey(); err != nil {
		return fmt.Errorf("make administrator's key: %w", err)
	}
	if err := b.joinToken(now); err != nil {
		return fmt.Errorf("make join token: %w", err)
	}
	return nil
}

// adminKey makes the first key. The file may be deleted once it was read: as
// long as an administrator's key exists there will be no other.
func (b *bootstrap) adminKey() error {
	for _, k := range b.fleet.APIKeys() {
		if k.Admin {
			return nil
		}
	}
	_, secret, err := b.fleet.CreateAPIKey("", true)
	if err != nil {
		return err
	}
	b.log.Info("administrator's key written", "file", filepath.Join(b.dir.Path(), adminKeyFile))
	return b.dir.WriteFile("admin-key", adminKeyFile, []byte(secret+"\n"), 0o600)
}

// joinToken keeps the token file usable for at least half of joinLife.
func (b *bootstrap) joinToken(now time.Time) error {
	dir, err := durable.OpenDir(filepath.Dir(b.tokenPath), nil)
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(b.tokenPath)
	raw, err := dir.ReadFile(name, maxToken)
	if err != nil && !errors.Is(err, env.ErrNotFound) {
		return err
	}
	if t, err := pki.ParseJoinToken(string(raw)); err == nil && b.fleet.JoinTokenEnds(t.Hash()).After(now.Add(joinLife/2)) {
		return nil
	}
	text, _, err := controllerapi.NewJoinToken(b.fleet, b.ca, joinLife)
	if err != nil {
		return err
	}
	return dir.WriteFile("join-token", name, []byte(text+"\n"), 0o600)
}

func isNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, env.ErrNotFound)
}

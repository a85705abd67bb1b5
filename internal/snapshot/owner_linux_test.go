package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestALineageBelongsToOneTenant(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	info := capture1(t, s, acmeSource(dir), &recorder{})
	if info.Tenant != acme {
		t.Errorf("info = %+v", info)
	}
	if got, err := s.Get(info.ID); err != nil || got.Tenant != acme {
		t.Errorf("Get = %+v, %v", got, err)
	}
	for _, tenant := range []string{"other", ""} {
		src := acmeSource(dir)
		src.Tenant = tenant
		if _, err := s.Capture(t.Context(), src, &recorder{}); !errors.Is(err, env.ErrDenied) {
			t.Errorf("capture by %q: %v", tenant, err)
		}
		if _, err := s.Fork(t.Context(), info.ID, "e-child", tenant); !errors.Is(err, env.ErrDenied) {
			t.Errorf("fork by %q: %v", tenant, err)
		}
	}
	child, err := s.Fork(t.Context(), info.ID, "e-child", acme)
	if err != nil || child.Tenant != acme {
		t.Errorf("fork = %+v, %v", child, err)
	}
	if all, err := s.List("e-test"); err != nil || len(all) != 1 {
		t.Errorf("list = %v, %v", all, err)
	}
	src := acmeSource(dir)
	src.Tenant = strings.Repeat("t", 300)
	if _, err := s.Capture(t.Context(), src, nil); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("long tenant: %v", err)
	}
}

func TestABorrowedLineageOfAnotherTenantIsRefused(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	capture1(t, s, acmeSource(dir), &recorder{})
	src := acmeSource(dir)
	src.Lineage, src.Tenant = "e-other", "other"
	capture1(t, s, src, &recorder{})
	forged := fmt.Sprintf(`{"version":1,"lineage":"e-test","snapshot":"e-test/1","next_pack":%d}`, 9)
	must(t, os.WriteFile(filepath.Join(s.lin.Path(), "e-other", borrowName), []byte(forged), 0o600))
	if _, err := s.Verify(t.Context(), "e-other/1"); !errors.Is(err, env.ErrCorrupt) || !strings.Contains(err.Error(), "another tenant") {
		t.Errorf("error = %v", err)
	}
}

func TestADamagedOrForeignOwnerIsRefused(t *testing.T) {
	s, dir := newStore(t), t.TempDir()
	write(t, filepath.Join(dir, "f"), []byte("x"))
	info := capture1(t, s, acmeSource(dir), &recorder{})
	src := acmeSource(dir)
	src.Lineage = "e-other"
	capture1(t, s, src, &recorder{})
	path := filepath.Join(s.lin.Path(), "e-test", ownerName)
	good, err := os.ReadFile(path)
	must(t, err)
	foreign, err := os.ReadFile(filepath.Join(s.lin.Path(), "e-other", ownerName))
	must(t, err)
	newer := bytes.Clone(good)
	newer[8] = 9
	for name, b := range map[string][]byte{"empty": {}, "cut": good[:len(good)-1], "of another lineage": foreign, "newer": newer} {
		must(t, os.WriteFile(path, b, 0o600))
		want := env.ErrCorrupt
		if name == "newer" {
			want = env.ErrUnsupported
		}
		if _, err := s.Get(info.ID); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Capture(t.Context(), acmeSource(dir), nil); !errors.Is(err, want) {
			t.Errorf("%s: capture: %v", name, err)
		}
	}
	for at := range good {
		b := bytes.Clone(good)
		b[at] ^= 1
		if _, err := decodeOwner(s.keys, "e-test", b); err == nil {
			t.Errorf("byte %d may be changed", at)
		}
	}
	must(t, os.WriteFile(path, good, 0o600))
	if _, err := s.Verify(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
}

func FuzzOwner(f *testing.F) {
	k := testKeys(f)
	good, err := encodeOwner(k, "e-test", newOwner(acme))
	must(f, err)
	f.Add(good)
	f.Add(good[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeOwner(k, "e-test", b); err == nil && !bytes.Equal(b, good) {
			t.Fatal("a forged owner was accepted")
		}
	})
}

// oldStore is a store as programs left it before lineages had owners: names are
// derived from the store's secret.
func oldStore(t *testing.T, dir string) (s *Store, id ID) {
	t.Helper()
	s = newStore(t)
	info := capture1(t, s, source(dir), &recorder{})
	lin, err := s.openLineage("e-test")
	must(t, err)
	secret := lin.owner.Secret
	lin.close()
	path := s.dir.Path()
	must(t, s.Close())
	must(t, os.Remove(filepath.Join(path, "lin/e-test", ownerName)))
	must(t, os.WriteFile(filepath.Join(path, keyName), secret, 0o600))
	return openStore(t, path, nil), info.ID
}

func TestALineageFromBeforeOwnersGoesOn(t *testing.T) {
	dir := mixedTree(t)
	s, id := oldStore(t, dir)
	if info, err := s.Get(id); err != nil || info.Tenant != "" {
		t.Fatalf("Get = %+v, %v", info, err)
	}
	wantSameTree(t, dir, restore1(t, s, id))
	if err := s.Export(t.Context(), id, &bytes.Buffer{}); !errors.Is(err, env.ErrUnsupported) {
		t.Errorf("export: %v", err)
	}
	if _, err := s.Fork(t.Context(), id, "e-denied", acme); !errors.Is(err, env.ErrDenied) {
		t.Errorf("fork by a tenant: %v", err)
	}
	before, err := s.Fork(t.Context(), id, "e-before", "")
	must(t, err)
	// A capture says whose it is, and stores nothing again.
	write(t, filepath.Join(dir, "new"), []byte("new"))
	info := capture1(t, s, acmeSource(dir), &recorder{})
	if info.Tenant != acme || info.NewBytes > 20_000 {
		t.Errorf("info = %+v", info)
	}
	after, err := s.Fork(t.Context(), info.ID, "e-after", acme)
	must(t, err)
	if _, err := s.Fork(t.Context(), info.ID, "e-denied", "other"); !errors.Is(err, env.ErrDenied) {
		t.Errorf("fork by another tenant: %v", err)
	}
	for _, id := range []ID{id, info.ID, before.ID, after.ID} {
		if _, err := s.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

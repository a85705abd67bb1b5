package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

func TestWhatIsTooLargeIsRefusedBeforeAnythingIsStored(t *testing.T) {
	many := func(n, size int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("%04d", i)] = strings.Repeat("v", size-4)
		}
		return m
	}
	admin := fleet.Principal{Admin: true}
	long := func(n int) string { return strings.Repeat("a", n) }
	for name, tc := range map[string]struct {
		who  fleet.Principal
		key  string
		spec *hearthv1.ClaimSpec
		says string // empty: it is accepted
	}{
		"64 labels of 4 KiB":        {alice, "k", &hearthv1.ClaimSpec{Class: "small", Labels: many(64, 64)}, ""},
		"65 labels":                 {alice, "k", &hearthv1.ClaimSpec{Class: "small", Labels: many(65, 5)}, "65 labels, at most 64"},
		"labels of more than 4 KiB": {alice, "k", &hearthv1.ClaimSpec{Class: "small", Labels: many(63, 66)}, "labels of 4158 bytes, at most 4096"},
		"a tenant of 63":            {admin, "k", &hearthv1.ClaimSpec{Class: "small", Tenant: long(63)}, ""},
		"a tenant of 64":            {admin, "k", &hearthv1.ClaimSpec{Class: "small", Tenant: long(64)}, "tenant"},
		"a tenant that is no name":  {admin, "k", &hearthv1.ClaimSpec{Class: "small", Tenant: "A_b"}, "tenant"},
		"a key's bad tenant":        {fleet.Principal{Tenant: "../x"}, "k", &hearthv1.ClaimSpec{Class: "small"}, "tenant"},
		"a key of 128":              {alice, long(128), &hearthv1.ClaimSpec{Class: "small"}, ""},
		"a key of 129":              {alice, long(129), &hearthv1.ClaimSpec{Class: "small"}, "idempotency key of 129 bytes, at most 128"},
		"no key":                    {alice, "", &hearthv1.ClaimSpec{Class: "small"}, "idempotency key is missing"},
		"a hostname of 63":          {alice, "k", &hearthv1.ClaimSpec{Class: "small", Hostname: long(63)}, ""},
		"a hostname of 64":          {alice, "k", &hearthv1.ClaimSpec{Class: "small", Hostname: long(64)}, "hostname of 64 bytes, at most 63"},
		"variables of 64 KiB":       {alice, "k", &hearthv1.ClaimSpec{Class: "small", Variables: map[string]string{"A": long(64<<10 - 3)}}, ""},
		"variables of more":         {alice, "k", &hearthv1.ClaimSpec{Class: "small", Variables: map[string]string{"A": long(64<<10 - 2)}}, "variables of 65537 bytes, at most 65536"},
		"metadata of 64 KiB":        {alice, "k", &hearthv1.ClaimSpec{Class: "small", Metadata: make([]byte, 64<<10)}, ""},
		"metadata of more":          {alice, "k", &hearthv1.ClaimSpec{Class: "small", Metadata: make([]byte, 64<<10+1)}, "metadata of 65537 bytes, at most 65536"},
		"a class of 254":            {alice, "k", &hearthv1.ClaimSpec{Class: long(254)}, "class of 254 bytes, at most 253"},
		"no class":                  {alice, "k", nil, "class is missing"},
		"a mount":                   {alice, "k", &hearthv1.ClaimSpec{Class: "small", Mounts: []*hearthv1.Mount{{Name: "data", Path: "/data"}}}, ""},
		"a mount over /proc":        {alice, "k", &hearthv1.ClaimSpec{Class: "small", Mounts: []*hearthv1.Mount{{Name: "data", Path: "/proc"}}}, "/proc is the node's own"},
		"17 mounts":                 {alice, "k", &hearthv1.ClaimSpec{Class: "small", Mounts: make([]*hearthv1.Mount, 17)}, "17 mounts, at most 16"},
		"an endless snapshot":       {alice, "k", &hearthv1.ClaimSpec{Class: "small", Snapshot: "e-1/" + long(61)}, "snapshot of 65 bytes, at most 64"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.report()
				_, err := w.fleet.Claim(context.Background(), tc.who, tc.key, tc.spec)
				if tc.says == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error = %v, want %q", err, tc.says)
				}
				st, err := w.store.Load()
				if err != nil || len(st.Records)+len(w.node.claims) != 0 {
					t.Errorf("stored %d records, %v; the node has %v", len(st.Records), err, w.node.claims)
				}
			})
		})
	}
}

func TestAForksVariablesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.report()
		parent, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.fleet.Fork(context.Background(), alice, &hearthv1.ForkRequest{IdempotencyKey: "f", Environment: parent.GetEnvironment().GetId(), Count: 1,
			Variables: map[string]string{"A": strings.Repeat("a", 64<<10)}})
		if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), "variables of") {
			t.Errorf("error = %v", err)
		}
	})
}

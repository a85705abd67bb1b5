package rpc

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"hearth/internal/env"
)

func TestErrorsKeepTheirSentinelOverTheWire(t *testing.T) {
	h := newService(t, nil)
	c := h.unixClient(t)
	for _, m := range mapping {
		h.fail = fmt.Errorf("do thing: %w: because", m.sentinel)
		err := c.get(t.Context())
		if !errors.Is(err, m.sentinel) {
			t.Errorf("%v came as %v", h.fail, err)
		}
		if err.Error() != h.fail.Error() {
			t.Errorf("text = %q, want %q", err, h.fail)
		}
		if connect.CodeOf(err) != m.code {
			t.Errorf("%v: code = %v, want %v", m.sentinel, connect.CodeOf(err), m.code)
		}
		for _, other := range mapping {
			if !errors.Is(m.sentinel, other.sentinel) && errors.Is(err, other.sentinel) {
				t.Errorf("%v matches %v too", err, other.sentinel)
			}
		}
		if !Answered(err) {
			t.Errorf("%v counts as not answered", err)
		}
	}
}

func TestUnsupportedErrorsAreRebuilt(t *testing.T) {
	h := newService(t, nil)
	h.fail = fmt.Errorf("probe: %w", &env.UnsupportedError{Feature: "tcx", Needs: "Linux 6.6"})
	err := h.unixClient(t).get(t.Context())
	var u *env.UnsupportedError
	if !errors.As(err, &u) || u.Feature != "tcx" || u.Needs != "Linux 6.6" || !errors.Is(err, env.ErrUnsupported) {
		t.Errorf("error = %#v", err)
	}
}

func TestAnUnknownErrorIsInternalAndMatchesNothing(t *testing.T) {
	h := newService(t, nil)
	h.fail = errors.New("disk on fire")
	err := h.unixClient(t).get(t.Context())
	if connect.CodeOf(err) != connect.CodeInternal || err.Error() != "disk on fire" {
		t.Errorf("error = %v", err)
	}
	for _, m := range mapping {
		if errors.Is(err, m.sentinel) {
			t.Errorf("matches %v", m.sentinel)
		}
	}
}

func TestAnErrorOfAnInnerCallKeepsItsMeaningOverTwoHops(t *testing.T) {
	inner := newService(t, nil)
	inner.fail = fmt.Errorf("%w: no slot", env.ErrExhausted)
	ic := inner.unixClient(t)
	outer := newService(t, nil)
	outer.call = func(ctx context.Context) error {
		return fmt.Errorf("node n1: %w", ic.get(ctx))
	}
	err := outer.unixClient(t).get(t.Context())
	if !errors.Is(err, env.ErrExhausted) || err.Error() != "node n1: exhausted: no slot" {
		t.Errorf("error = %v", err)
	}
}

func TestNobodyThereIsUnavailableAndNotAnswered(t *testing.T) {
	c := clientOf(UnixClient(t.TempDir()+"/none.sock"), UnixURL)
	err := c.get(t.Context())
	if !errors.Is(err, env.ErrUnavailable) || Answered(err) {
		t.Errorf("error = %v, answered %v", err, Answered(err))
	}
}

func TestAPanicBecomesAnErrorAndTheServerGoesOn(t *testing.T) {
	h := newService(t, nil)
	h.call = func(context.Context) error { panic("boom") }
	c := h.unixClient(t)
	if err := c.get(t.Context()); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("error = %v", err)
	}
	h.call = nil
	if err := c.get(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFromErrorTellsAResetFromACancelledCall(t *testing.T) {
	for name, test := range map[string]struct {
		cause error
		want  error
	}{
		"reset":     {syscall.ECONNRESET, env.ErrUnavailable},
		"pipe":      {syscall.EPIPE, env.ErrUnavailable},
		"cancelled": {context.Canceled, context.Canceled},
	} {
		got := FromError(connect.NewError(connect.CodeCanceled, test.cause))
		if !errors.Is(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

package rpc

import (
	"context"
	"errors"
	"net"
	"syscall"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// mapping is the one table of sentinels, codes and reason words. The first
// sentinel that an error matches decides.
var mapping = [...]struct {
	sentinel error
	code     connect.Code
	reason   string
}{
	{env.ErrInvalid, connect.CodeInvalidArgument, "invalid"},
	{env.ErrNotFound, connect.CodeNotFound, "not_found"},
	{env.ErrExists, connect.CodeAlreadyExists, "exists"},
	{env.ErrExhausted, connect.CodeResourceExhausted, "exhausted"},
	{env.ErrState, connect.CodeFailedPrecondition, "state"},
	{env.ErrSuperseded, connect.CodeAborted, "superseded"}, // before what it wraps
	{env.ErrFenced, connect.CodeAborted, "fenced"},
	{env.ErrDenied, connect.CodePermissionDenied, "denied"},
	{env.ErrUnavailable, connect.CodeUnavailable, "unavailable"},
	{env.ErrUnsupported, connect.CodeUnimplemented, "unsupported"},
	{env.ErrCorrupt, connect.CodeDataLoss, "corrupt"},
	{context.Canceled, connect.CodeCanceled, "canceled"},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded, "deadline"},
}

// Error turns err into what travels: a connect error whose code follows from
// the sentinel that err matches, with a hearthv1.ErrorDetail. Errors without a
// sentinel become internal ones; a connect error stays as it is. The text is
// sent as it is, so it must hold no secret.
func Error(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) && !isRemote(err) {
		return err
	}
	for _, m := range mapping {
		if !errors.Is(err, m.sentinel) {
			continue
		}
		return withDetail(connect.NewError(m.code, plain(err)), m.reason, err)
	}
	return connect.NewError(connect.CodeInternal, plain(err))
}

// Unauthenticated is what a server answers when it does not know who calls; at
// the client it matches env.ErrDenied.
func Unauthenticated(err error) error {
	return withDetail(connect.NewError(connect.CodeUnauthenticated, plain(err)), "denied", err)
}

// plain keeps only the text: connect would otherwise find a connect error of an
// inner call in the chain and send that one's code on.
func plain(err error) error { return errors.New(err.Error()) }

func isRemote(err error) bool {
	var r *remoteError
	return errors.As(err, &r)
}

func withDetail(ce *connect.Error, reason string, err error) *connect.Error {
	d := &hearthv1.ErrorDetail{Reason: reason}
	var u *env.UnsupportedError
	if errors.As(err, &u) {
		d.Feature, d.Needs = u.Feature, u.Needs
	}
	if detail, err := connect.NewErrorDetail(d); err == nil {
		ce.AddDetail(detail)
	}
	return ce
}

// remoteError is an error that came over the wire, or of the wire itself.
type remoteError struct {
	message  string
	sentinel error // nil if the code has none
	cause    *connect.Error
}

func (e *remoteError) Error() string { return e.message }

// Unwrap lets errors.Is find the sentinel and errors.As the connect error.
func (e *remoteError) Unwrap() []error {
	if e.sentinel == nil {
		return []error{e.cause}
	}
	return []error{e.sentinel, e.cause}
}

// FromError turns a client's error back: errors.Is finds the sentinel that the
// server's error had, and *env.UnsupportedError is rebuilt. An error of the
// connection, whatever its form, is env.ErrUnavailable and not Answered. What
// else is not of connect, io.EOF for one, stays as it is.
func FromError(err error) error {
	var ce *connect.Error
	var ne net.Error // *url.Error is one too
	switch {
	case err == nil, isRemote(err):
		return err
	case errors.As(err, &ce):
		return &remoteError{message: ce.Message(), sentinel: sentinelOf(ce, detailOf(ce)), cause: ce}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &ne):
		return &remoteError{message: err.Error(), sentinel: env.ErrUnavailable, cause: connect.NewError(connect.CodeUnavailable, err)}
	default:
		return err
	}
}

func detailOf(ce *connect.Error) *hearthv1.ErrorDetail {
	for _, raw := range ce.Details() {
		v, err := raw.Value()
		if err != nil {
			continue // of a type that this program does not know
		}
		if d, ok := v.(*hearthv1.ErrorDetail); ok {
			return d
		}
	}
	return &hearthv1.ErrorDetail{}
}

// endedHere reports whether the caller's own context ended the call. A
// connection that the other side reset has the code of a cancellation too.
func endedHere(ce *connect.Error) bool {
	switch ce.Code() {
	case connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return !errors.Is(ce, syscall.ECONNRESET) && !errors.Is(ce, syscall.EPIPE)
	}
	return false
}

func sentinelOf(ce *connect.Error, d *hearthv1.ErrorDetail) error {
	if d.GetFeature() != "" {
		return &env.UnsupportedError{Feature: d.GetFeature(), Needs: d.GetNeeds()}
	}
	for _, m := range mapping {
		if d.GetReason() == m.reason {
			return m.sentinel
		}
	}
	if !connect.IsWireError(ce) && !endedHere(ce) {
		// Connect gives broken connections codes of several kinds, invalid
		// argument among them; none is the server's word.
		return env.ErrUnavailable
	}
	if ce.Code() == connect.CodeUnauthenticated {
		return env.ErrDenied
	}
	for _, m := range mapping {
		if ce.Code() == m.code {
			return m.sentinel
		}
	}
	return nil
}

// Answered reports whether err is the server's own answer. If it is not, the
// connection failed and the call may or may not have been carried out.
func Answered(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce) && connect.IsWireError(ce)
}

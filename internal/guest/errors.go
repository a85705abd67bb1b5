package guest

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// maxMessage bounds a text from inside, in bytes, once it is cleaned.
const maxMessage = 4 << 10

// UnreadyError says that an environment did not become ready, and which part
// of it is to blame. It matches env.ErrUnavailable.
type UnreadyError struct {
	Message string // from inside: cut and cleaned
}

func (e *UnreadyError) Error() string { return "environment is not ready: " + e.Message }

// Is makes errors.Is(err, env.ErrUnavailable) true.
func (e *UnreadyError) Is(target error) bool { return target == env.ErrUnavailable }

// remote turns an error frame into an error.
func (cl *call) remote(f wire.Frame) error {
	var e wire.Error
	if err := f.Decode(&e); err != nil {
		return cl.lie("%v", err)
	}
	message := clean(e.Message)
	if e.Code == wire.CodeUnready {
		return &UnreadyError{Message: message}
	}
	return fmt.Errorf("%w: %s: %s", sentinel(e.Code), cl.op, message)
}

func sentinel(code wire.Code) error {
	switch code {
	case wire.CodeInvalid:
		return env.ErrInvalid
	case wire.CodeNotFound:
		return env.ErrNotFound
	case wire.CodeExists:
		return env.ErrExists
	case wire.CodeDenied:
		return env.ErrDenied
	case wire.CodeState:
		return env.ErrState
	case wire.CodeExhausted:
		return env.ErrExhausted
	case wire.CodeVersion:
		return env.ErrUnsupported
	default:
		return env.ErrUnavailable
	}
}

// clean makes a stranger's text fit for a log line or a terminal: valid
// UTF-8, no control characters but spaces for line ends, bounded.
func clean(s string) string {
	cut := len(s) > maxMessage
	if cut {
		s = s[:maxMessage]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return utf8.RuneError
		default:
			return r
		}
	}, s)
	if cut {
		s += "…"
	}
	return s
}

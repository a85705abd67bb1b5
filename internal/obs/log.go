package obs

import (
	"fmt"
	"io"
	"log/slog"

	"hearth/internal/env"
)

// NewLogger makes a logger that writes to w. Format is "text" or "json";
// level is "debug", "info", "warn" or "error". Empty words mean text and info.
// Errors wrap env.ErrInvalid.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if level != "" {
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, fmt.Errorf("%w: log level %q: use debug, info, warn or error", env.ErrInvalid, level)
		}
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("%w: log format %q: use text or json", env.ErrInvalid, format)
	}
}

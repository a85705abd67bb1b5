package guest

import (
	"context"
	"io"
	"sync"
)

// Run executes a command to its end. Nil writers discard, a nil stdin is
// empty. If stdin's Read blocks past the process's exit, Run waits for it, so
// pass something that ends. If ctx ends, the process is hung up.
func (c *Client) Run(ctx context.Context, cmd Command, stdin io.Reader, stdout, stderr io.Writer) (Exit, error) {
	p, err := c.Exec(ctx, cmd)
	if err != nil {
		return Exit{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = p.Hangup()
		p.Close()
	})
	var feeding sync.WaitGroup
	defer feeding.Wait()
	defer p.Close()
	defer stop()
	if stdin == nil {
		_ = p.CloseStdin()
	} else {
		feeding.Go(func() {
			_, _ = io.Copy(onlyWriter{p}, stdin)
			_ = p.CloseStdin()
		})
	}
	return p.drain(ctx, stdout, stderr)
}

func (p *Process) drain(ctx context.Context, stdout, stderr io.Writer) (Exit, error) {
	for {
		ev, err := p.Recv()
		if ctx.Err() != nil {
			return Exit{}, context.Cause(ctx)
		}
		if err != nil {
			return Exit{}, err
		}
		if ev.Exit != nil {
			return *ev.Exit, nil
		}
		w := stdout
		if ev.Stream == Stderr {
			w = stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(ev.Data); err != nil {
			return Exit{}, err
		}
	}
}

// onlyWriter hides everything but Write from io.Copy.
type onlyWriter struct{ w io.Writer }

func (o onlyWriter) Write(b []byte) (int, error) { return o.w.Write(b) }

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hearth/internal/config"
	"hearth/internal/durable"
	"hearth/internal/env"
)

// readyTimeout bounds the question.
const readyTimeout = 5 * time.Second

func readyCommand(e environment, load func() (config.Agent, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "ready",
		Short: "Say whether the agent beside this command serves the node",
		Long: `Say whether the agent serves the node: exit code 0 if it does, else 3 with the
reason.

It is the readiness probe of the agent's pod. While one agent hands over to
another, both pods share the node's ports, so that asking a port would tell the
one about the other. This command says yes only for the agent that runs in the
same container, or beside it on a host, and holds the node's lock.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), readyTimeout)
			defer cancel()
			if err := isReady(ctx, cfg); err != nil {
				return fmt.Errorf("%w: not ready: %w", env.ErrState, err)
			}
			_, err = fmt.Fprintln(e.stdout, "ready")
			return err
		},
	}
}

func isReady(ctx context.Context, cfg config.Agent) error {
	pid, held, err := durable.Holder(lockPath(cfg))
	if err != nil {
		return err
	}
	if !held || pid == 0 {
		return errors.New("no agent runs")
	}
	beside, err := sameMounts(pid)
	switch {
	case err != nil:
		return err
	case !beside:
		return fmt.Errorf("process %d, in another container, is the node's agent", pid)
	}
	return askReady(ctx, cfg.API.Metrics)
}

// sameMounts reports whether a process sees the files that this one does: then
// both are in one container.
func sameMounts(pid int) (bool, error) {
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	other, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	if err != nil {
		return false, err
	}
	return os.SameFile(own, other), nil
}

// askReady asks the agent itself.
func askReady(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(body)))
	}
	return err
}

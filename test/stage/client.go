package stage

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
)

// Hearthctl runs the user's command line, as a user would.
type Hearthctl struct {
	path string
	env  []string
}

// NewHearthctl runs the program at path with these variables.
func NewHearthctl(path string, env ...string) Hearthctl { return Hearthctl{path: path, env: env} }

// With is h with other values of some variables.
func (h Hearthctl) With(env ...string) Hearthctl {
	h.env = append(append([]string(nil), h.env...), env...) // the last one counts
	return h
}

// Run returns standard output; an error has standard error's text.
func (h Hearthctl) Run(args ...string) (string, error) {
	out, stderr, code := h.Try(args...)
	if code != 0 {
		return out, fmt.Errorf("hearthctl %s: exit %d: %s", strings.Join(args, " "), code, stderr)
	}
	return out, nil
}

// Try returns both streams and the exit code, -1 if it did not run.
func (h Hearthctl) Try(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd := h.Command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), 0
}

// Command is a hearthctl that is not started yet.
func (h Hearthctl) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.path, args...)
	cmd.Env = h.env
	return cmd
}

// Decode runs a command with -o json into v.
func (h Hearthctl) Decode(v any, args ...string) error {
	out, err := h.Run(append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("hearthctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Claimed is what is read of a claim's answer.
type Claimed struct {
	Environment struct {
		ID      string `json:"id"`
		Slot    string `json:"slot"`
		Warm    bool   `json:"warm"`
		PID     int    `json:"pid"`
		Address string `json:"address"`
	} `json:"environment"`
	Access struct {
		Address string `json:"address"`
		Token   string `json:"token"`
		CAPEM   []byte `json:"caPem"`
	} `json:"access"`
	Took string `json:"took"`
}

// ID is the environment's.
func (c Claimed) ID() string { return c.Environment.ID }

// Duration is the claim's time on the node.
func (c Claimed) Duration() time.Duration {
	d, _ := time.ParseDuration(c.Took) // protojson's form is one that Go reads
	return d
}

// Claim claims an environment, as a user does.
func (h Hearthctl) Claim(args ...string) (c Claimed, err error) {
	err = h.Decode(&c, append([]string{"claim", "--class", ClassName}, args...)...)
	return c, err
}

// Sh runs a shell command inside.
func (h Hearthctl) Sh(c Claimed, script string) (string, error) {
	return h.Run("exec", c.ID(), "--", "sh", "-c", script)
}

// Get asks an HTTP port of the environment through the node's proxy.
func (c Claimed) Get(port int, path string) (string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.Access.CAPEM)
	client := http.Client{
		Timeout:   Slow(5 * time.Second),
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}},
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://%s/ports/%s/%d%s", c.Access.Address, c.ID(), port, path), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+c.Access.Token)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL, resp.Status, body)
	}
	return string(body), err
}

// NodeClient speaks to the agent's socket, as an operator on the node.
type NodeClient struct {
	hearthv1connect.NodeServiceClient
}

func (s *Stage) nodeClient() NodeClient {
	return NodeClient{hearthv1connect.NewNodeServiceClient(rpc.UnixClient(s.socket()), rpc.UnixURL, rpc.ClientOptions()...)}
}

// Drops is how many packets of an environment were refused for a reason.
func (n NodeClient) Drops(id, reason string) (uint64, error) {
	resp, err := n.Flows(context.Background(), &hearthv1.FlowsRequest{Environment: id})
	if err != nil {
		return 0, err
	}
	return resp.GetDrops()[reason], nil
}

// Open turns the judgement of an environment's packets off or on again.
func (n NodeClient) Open(c Claimed, open bool) error {
	_, err := n.UnsafeOpenIsland(context.Background(), &hearthv1.UnsafeOpenIslandRequest{Environment: c.ID(), Open: open})
	return err
}

// Pool returns the class's pool.
func (n NodeClient) Pool() (*hearthv1.Pool, error) {
	resp, err := n.Inventory(context.Background(), &hearthv1.InventoryRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range resp.GetPools() {
		if p.GetClass() == ClassName {
			return p, nil
		}
	}
	return nil, fmt.Errorf("the node has no class %s", ClassName)
}

// PoolFull waits until the pool has what it wants and prepares nothing.
func (n NodeClient) PoolFull(most time.Duration) (*hearthv1.Pool, error) {
	var pool *hearthv1.Pool
	err := Eventually(most, func() (err error) {
		if pool, err = n.Pool(); err != nil {
			return err
		}
		if pool.GetReady() != pool.GetWant() || pool.GetPreparing() != 0 {
			return fmt.Errorf("pool has %d of %d slots ready: %s", pool.GetReady(), pool.GetWant(), pool.GetMessage())
		}
		return nil
	})
	return pool, err
}

// Metric reads one sample of the agent's metrics by its full name and labels.
func Metric(name string) (string, error) {
	resp, err := http.Get("http://127.0.0.1:7402/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	for _, line := range strings.Split(string(body), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return value, nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("no metric %s", name))
}

func baseEnv(s *Stage, more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "XDG_STATE_HOME=" + s.Path("state-home"), "HEARTH_NODE_SOCKET="}, more...)
}

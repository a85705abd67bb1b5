package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/rpc"
	"hearth/test/stage"
)

// host is the stage that every benchmark of this run uses; TestMain sets it.
var host *clients

// clients keep their connections for the whole run, as a backend does.
type clients struct {
	stage      *stage.Stage
	node       hearthv1connect.NodeServiceClient
	controller hearthv1connect.EnvironmentServiceClient
	containerd *client.Client
	idle       []interface{ CloseIdleConnections() }
}

func open(s *stage.Stage) (*clients, error) {
	key, err := os.ReadFile(s.Path("controller/admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(s.Path("controller/ca.pem"))
	if err != nil {
		return nil, err
	}
	c := &clients{stage: s, node: s.Node}
	h := c.tls(ca)
	h.Transport = bearer{h.Transport, map[string]string{"Authorization": "Bearer " + strings.TrimSpace(string(key))}}
	c.controller = hearthv1connect.NewEnvironmentServiceClient(h, "https://127.0.0.1:7400", rpc.ClientOptions()...)
	c.containerd, err = client.New("/run/"+instance+"/containerd/containerd.sock", client.WithDefaultNamespace(instance))
	return c, err
}

func (c *clients) tls(ca []byte) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	h := rpc.TLSClient(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})
	c.idle = append(c.idle, h)
	return h
}

func (c *clients) close() {
	_ = c.containerd.Close()
	for _, h := range c.idle {
		h.CloseIdleConnections()
	}
}

// bearer adds headers to every request.
type bearer struct {
	next    http.RoundTripper
	headers map[string]string
}

func (t bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for k, v := range t.headers {
		r.Header.Set(k, v)
	}
	return t.next.RoundTrip(r)
}

// filling is how long a pool of poolSize may take to be full.
const filling = 5 * time.Minute

// settle ends the environments and waits until the pool is full again, nothing is
// prepared any more, and the controller knows.
func (c *clients) settle(b *testing.B, ids ...string) {
	b.Helper()
	if err := c.release(ids); err != nil {
		b.Fatal(err)
	}
	if _, err := c.stage.Node.PoolFull(filling); err != nil {
		b.Fatal(err)
	}
	time.Sleep(heard)
}

// release ends environments, all that can be.
func (c *clients) release(ids []string) error {
	var errs []error
	for _, id := range ids {
		_, err := c.node.Release(context.Background(), &hearthv1.NodeReleaseRequest{Environment: id})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// heard is when the controller knows of a full pool: with the next heartbeat.
const heard = 3 * time.Second

// limit lets the node have so many slots, and waits until its pool is full.
func (c *clients) limit(b *testing.B, slots int) {
	b.Helper()
	if c.stage.MaxSlots != slots {
		if err := c.stage.Limit(slots); err != nil {
			b.Fatal(err)
		}
	}
	c.settle(b)
}

// rounds calls one for each iteration of b, with the number of the iteration, and
// settles whenever so many environments are claimed as the node can give away. If one
// fails, the next benchmark finds none of them.
func (c *clients) rounds(b *testing.B, most int, one func(i int) (id string)) {
	b.Helper()
	var ids []string
	defer func() {
		if b.Failed() {
			_ = c.release(ids) // what failed first is told
		}
	}()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		if len(ids) == most {
			c.settle(b, ids...)
			ids = ids[:0]
		}
		ids = append(ids, one(i))
		b.StartTimer()
	}
	b.StopTimer()
	c.settle(b, ids...)
}

// processorTimes is what each part of a claim has used so far.
func (c *clients) processorTimes(b *testing.B) map[string]time.Duration {
	b.Helper()
	out := map[string]time.Duration{"client": processorTime(b, os.Getpid())}
	for _, who := range []string{"agent", "controller"} {
		pid, err := c.stage.PID(who)
		if err != nil {
			b.Fatal(err)
		}
		out[who] = processorTime(b, pid)
	}
	return out
}

// sample is a series of measured times.
type sample []time.Duration

// percentile is the value that p of the sample do not exceed (nearest rank).
func (s sample) percentile(p int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[max((len(s)*p+99)/100-1, 0)]
}

// report gives the percentiles, and takes back the mean, which would count
// what lies between two measured calls.
func (s sample) report(b *testing.B) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(s.percentile(50)), "p50-ms")
	b.ReportMetric(ms(s.percentile(99)), "p99-ms")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spec is a whole personalisation: 20 variables, one of them a secret of 4 KiB,
// a host name, metadata, labels, an egress policy narrower than the class's, limits
// other than the class's, and a directory of the node. Two of different n have
// different policies.
func spec(n int) *hearthv1.ClaimSpec {
	vars := map[string]string{"SECRET": strings.Repeat("s3cr3t-4", 512)}
	for i := range 19 {
		vars[fmt.Sprintf("SETTING_%d", i)] = fmt.Sprintf("the value of setting %d", i)
	}
	return &hearthv1.ClaimSpec{
		Class: stage.ClassName, Variables: vars, Hostname: "agent-session",
		Metadata:  []byte(`{"session":"01ktz7r6m2ha4p9v3w8y5d0c1b","user":"someone@example.com","repository":"example/app","branch":"main","budget":{"tokens":1000000,"minutes":60}}`),
		Labels:    map[string]string{"session": "bench", "team": "example"},
		Resources: &hearthv1.Resources{CpuMillis: 750, MemoryBytes: 96 << 20},
		Mounts:    []*hearthv1.Mount{{Name: "shared", Path: "/workspace/data", ReadOnly: true}},
		Egress: &hearthv1.EgressPolicy{
			Mode: hearthv1.EgressPolicy_MODE_ALLOW,
			Allow: []*hearthv1.EgressRule{
				{Cidr: "93.184.216.0/24", Ports: []*hearthv1.PortRange{{First: 80}, {First: 443}}},
				{Cidr: fmt.Sprintf("45.%d.%d.0/24", n>>8&0xff, n&0xff), Ports: []*hearthv1.PortRange{{First: 443}}},
			},
		},
	}
}

var errCold = errors.New("the claim was cold: the pool is not what is measured")

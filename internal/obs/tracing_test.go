package obs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP/HTTP receiver.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex // guards spans
	spans []*tracev1.Span
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		req := &collector.ExportTraceServiceRequest{}
		if err != nil || q.URL.Path != "/v1/traces" || proto.Unmarshal(body, req) != nil {
			http.Error(w, "no traces", http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, resource := range req.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				r.spans = append(r.spans, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) named(t *testing.T, name string) *tracev1.Span {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.spans, func(s *tracev1.Span) bool { return s.GetName() == name })
	if i < 0 {
		t.Fatalf("no span %q among %d", name, len(r.spans))
	}
	return r.spans[i]
}

func tracingTo(t *testing.T, endpoint, service string) *Tracing {
	t.Helper()
	tr, err := NewTracing(t.Context(), slog.New(slog.DiscardHandler), TracingConfig{Endpoint: endpoint, Sample: 1, Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestACallIsOneTraceOverTwoProcesses(t *testing.T) {
	r := newReceiver(t)
	near, far := tracingTo(t, r.URL, "controller"), tracingTo(t, r.URL, "nodeagent")
	begun := time.Now().Add(-time.Millisecond)
	server := httptest.NewServer(far.Handler(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		far.Told(q.Context(), "claim", begun, []Phase{{"take", 100 * time.Microsecond}, {"thaw", 200 * time.Microsecond}}, map[string]string{"class": "base"})
	})))
	defer server.Close()
	client := &http.Client{Transport: near.Transport(http.DefaultTransport)}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/hearth.v1.NodeService/Claim", http.NoBody)
	req.Header.Set("Content-Type", "application/proto")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	for _, tr := range []*Tracing{near, far} {
		if err := tr.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	claim, thaw := r.named(t, "claim"), r.named(t, "thaw")
	if string(thaw.GetParentSpanId()) != string(claim.GetSpanId()) {
		t.Error("a phase is not within its claim")
	}
	if got := thaw.GetStartTimeUnixNano() - claim.GetStartTimeUnixNano(); got != 100_000 {
		t.Errorf("the second phase begins after %d ns", got)
	}
	if got := claim.GetEndTimeUnixNano() - claim.GetStartTimeUnixNano(); got != 300_000 {
		t.Errorf("the claim takes %d ns", got)
	}
	var calls int
	for _, s := range r.spans {
		if string(s.GetTraceId()) != string(claim.GetTraceId()) {
			t.Errorf("span %q is of another trace", s.GetName())
		}
		if s.GetName() == "NodeService/Claim" {
			calls++
		}
	}
	if calls != 2 {
		t.Errorf("%d spans of the call, want the caller's and the server's", calls)
	}
}

func TestAReceiverThatIsAwayLosesSpansAloud(t *testing.T) {
	away := httptest.NewServer(http.NotFoundHandler())
	away.Close()
	var said bytes.Buffer
	tr, err := NewTracing(t.Context(), slog.New(slog.NewTextHandler(&said, nil)), TracingConfig{Endpoint: away.URL, Sample: 1})
	if err != nil {
		t.Fatal(err)
	}
	tr.Told(t.Context(), "claim", time.Now(), nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := tr.Close(ctx); err == nil && !strings.Contains(said.String(), "traces are lost") {
		t.Errorf("spans that reached nobody: %q", said.String())
	}
}

func TestWithoutAnEndpointNothingIsTraced(t *testing.T) {
	tr, err := NewTracing(t.Context(), slog.New(slog.DiscardHandler), TracingConfig{})
	if tr != nil || err != nil {
		t.Fatal(tr, err)
	}
	tr.Told(t.Context(), "claim", time.Now(), nil, nil)
	if h := http.NotFoundHandler(); tr.Handler(h) == nil || tr.Transport(http.DefaultTransport) != http.DefaultTransport {
		t.Error("what is not traced is wrapped")
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

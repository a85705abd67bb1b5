package obs

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// TracingConfig says where spans go. An empty Endpoint is nowhere.
type TracingConfig struct {
	Endpoint string  // URL of an OTLP/HTTP receiver; without a path, /v1/traces
	Sample   float64 // share of the traces that begin here, 0 to 1
	Service  string  // service.name
	Version  string
	Instance string // service.instance.id
}

// Tracing sends spans by OTLP over HTTP. A nil one does nothing, and costs nothing.
type Tracing struct {
	provider *trace.TracerProvider
	tracer   oteltrace.Tracer
	words    propagation.TextMapPropagator
}

// NewTracing makes a sender, or nil without an endpoint. It connects when the first
// spans are sent; a receiver that does not answer loses spans and delays nobody.
func NewTracing(ctx context.Context, log *slog.Logger, cfg TracingConfig) (*Tracing, error) {
	if cfg.Endpoint == "" {
		return nil, nil //nolint:nilnil // nil is off
	}
	to, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("send traces: %w", err)
	}
	if strings.Trim(to.Path, "/") == "" {
		to.Path = "/v1/traces"
	}
	out, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(to.String()))
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", to.Redacted(), err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are lost", "error", err) }))
	provider := trace.NewTracerProvider(
		trace.WithBatcher(out),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(cfg.Sample))),
		trace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", cfg.Service),
			attribute.String("service.version", cfg.Version),
			attribute.String("service.instance.id", cfg.Instance),
		)),
	)
	return &Tracing{provider, provider.Tracer("hearth"), propagation.TraceContext{}}, nil
}

// Close sends what is left, no longer than ctx. What does not arrive is logged.
func (t *Tracing) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Handler gives each call a span, within its caller's if that sends a traceparent
// (W3C Trace Context). Streams have none: they last as long as people like.
func (t *Tracing) Handler(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return otelhttp.NewHandler(next, "", append(t.options(), otelhttp.WithFilter(isCall))...)
}

// Transport gives each call that goes out a span, and tells its peer of it.
func (t *Tracing) Transport(next http.RoundTripper) http.RoundTripper {
	if t == nil {
		return next
	}
	return otelhttp.NewTransport(next, append(t.options(), otelhttp.WithFilter(isCall))...)
}

func (t *Tracing) options() []otelhttp.Option {
	return []otelhttp.Option{
		otelhttp.WithTracerProvider(t.provider), otelhttp.WithPropagators(t.words), otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return strings.TrimPrefix(r.URL.Path, "/hearth.v1.") }),
	}
}

// isCall tells a unary call by its type: streams are application/connect+… and
// application/grpc….
func isCall(r *http.Request) bool {
	switch r.Header.Get("Content-Type") {
	case "application/proto", "application/json":
		return strings.HasPrefix(r.URL.Path, "/hearth.v1.")
	}
	return false
}

// Phase is one step of something that was measured before it is told.
type Phase struct {
	Name string
	Took time.Duration
}

// Told makes spans of what has happened: one of the name, that began then, within
// ctx's, and one in it for each phase, which follow each other.
func (t *Tracing) Told(ctx context.Context, name string, begun time.Time, phases []Phase, labels map[string]string) {
	if t == nil {
		return
	}
	ctx, whole := t.tracer.Start(ctx, name, oteltrace.WithTimestamp(begun))
	for k, v := range labels {
		whole.SetAttributes(attribute.String("hearth."+k, v))
	}
	at := begun
	for _, p := range phases {
		_, span := t.tracer.Start(ctx, p.Name, oteltrace.WithTimestamp(at))
		at = at.Add(p.Took)
		span.End(oteltrace.WithTimestamp(at))
	}
	whole.End(oteltrace.WithTimestamp(at))
}

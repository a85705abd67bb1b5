package nodeapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

const (
	// maxFetchPiece bounds one message of a snapshot's stream.
	maxFetchPiece = 1 << 20
	// stallTime is how long either side of a fetch may do nothing.
	stallTime = 30 * time.Second
	// maxFetches bounds the fetches that one node answers at a time.
	maxFetches = 8
)

// Gate is who may call what over TCP: a node of the instance FetchSnapshot and
// nothing else, its controller everything else.
func Gate(instance string) rpc.Gate {
	controller, node := rpc.RequireRole(instance, pki.RoleController), rpc.RequireRole(instance, pki.RoleNode)
	return func(ctx context.Context, procedure string, h http.Header) (context.Context, error) {
		if procedure == hearthv1connect.NodeServiceFetchSnapshotProcedure {
			return node(ctx, procedure, h)
		}
		return controller(ctx, procedure, h)
	}
}

// BoundFetches ends a fetch whose receiver takes nothing for stallTime.
func BoundFetches(next http.Handler) http.Handler { return boundFetches(next, stallTime) }

func boundFetches(next http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == hearthv1connect.NodeServiceFetchSnapshotProcedure {
			w = &impatientWriter{w, http.NewResponseController(w), stall}
		}
		next.ServeHTTP(w, r)
	})
}

type impatientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (w *impatientWriter) Write(p []byte) (int, error) {
	if err := w.control.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *impatientWriter) Flush() { _ = w.control.Flush() }

// Unwrap is for http.ResponseController.
func (w *impatientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// FetchSnapshot implements NodeService, for the node that the snapshot was
// granted to.
func (s *Service) FetchSnapshot(ctx context.Context, req *hearthv1.FetchSnapshotRequest, out *connect.ServerStream[hearthv1.FetchSnapshotResponse]) error {
	id, caller := env.SnapshotID(req.GetSnapshot()), rpc.CallerFrom(ctx).Identity
	if caller.Role != pki.RoleNode || caller.Instance != s.info.Instance || !s.grants.allow(caller.Name, id, time.Now()) {
		return fmt.Errorf("%w: node %s grants snapshot %.128q to nobody of this name: it never did, more than %s ago, or before it was restarted; let it be granted again",
			env.ErrDenied, s.info.Node, id, grantTime)
	}
	select {
	case s.fetches <- struct{}{}:
		defer func() { <-s.fetches }()
	default:
		return fmt.Errorf("%w: node %s is sending %d snapshots; try again", env.ErrUnavailable, s.info.Node, maxFetches)
	}
	w := bufio.NewWriterSize(pieces{ctx, out}, maxFetchPiece)
	if err := s.snapshots.Export(ctx, id, w); err != nil {
		return err
	}
	return w.Flush()
}

// pieces sends what is written, cut into messages.
type pieces struct {
	ctx context.Context
	out *connect.ServerStream[hearthv1.FetchSnapshotResponse]
}

// Write implements io.Writer.
func (p pieces) Write(b []byte) (n int, err error) {
	for n < len(b) {
		if err := p.ctx.Err(); err != nil {
			return n, err
		}
		piece := b[n:min(len(b), n+maxFetchPiece)]
		if err := p.out.Send(&hearthv1.FetchSnapshotResponse{Data: piece}); err != nil {
			return n, fmt.Errorf("%w: the receiver is gone or takes nothing: %w", env.ErrUnavailable, err)
		}
		n += len(piece)
	}
	return n, nil
}

// Fetcher gets snapshots from other nodes of the instance.
type Fetcher struct {
	instance, node string // this one
	source         func() *pki.Source
	stall          time.Duration
}

// NewFetcher makes the fetcher of a node. source is asked at each fetch, and
// may give nil while the node has no certificate.
func NewFetcher(instance, node string, source func() *pki.Source) *Fetcher {
	return &Fetcher{instance: instance, node: node, source: source, stall: stallTime}
}

// Fetch has use read the stream of a snapshot, as the named node exports it. It
// takes as long as ctx lets it, but ends when that node sends nothing for
// stallTime. What use reads is that node's word, and only as good as its
// certificate. An error names both nodes.
func (f *Fetcher) Fetch(ctx context.Context, id env.SnapshotID, node, address string, use func(io.Reader) error) error {
	err := f.fetch(ctx, id, node, address, use)
	if err != nil {
		return fmt.Errorf("fetch snapshot %s from node %s (%s) to node %s: %w", id, node, address, f.node, err)
	}
	return nil
}

func (f *Fetcher) fetch(ctx context.Context, id env.SnapshotID, node, address string, use func(io.Reader) error) error {
	peer := pki.Node(f.instance, node)
	if err := peer.Check(); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%w: address: %s", env.ErrInvalid, err)
	}
	source := f.source()
	if source == nil {
		return fmt.Errorf("%w: this node has no certificate yet", env.ErrUnavailable)
	}
	client := rpc.TLSClient(source.ClientConfig(peer))
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &fetchReader{ctx: ctx, stall: f.stall, give: cancel}
	api := hearthv1connect.NewNodeServiceClient(client, "https://"+address, rpc.ClientOptions()...)
	err := r.open(api, id)
	if err == nil {
		defer r.stream.Close()
		err = use(r)
	}
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errStalled) {
		return fmt.Errorf("%w for %s", cause, f.stall)
	}
	return err
}

var errStalled = fmt.Errorf("%w: it sends nothing", env.ErrUnavailable)

// fetchReader reads the data of a stream. The sender is watched while this side
// waits, and only then; a message without data is no progress.
type fetchReader struct {
	ctx    context.Context
	stall  time.Duration
	give   context.CancelCauseFunc // gives the sender up
	stream *connect.ServerStreamForClient[hearthv1.FetchSnapshotResponse]
	rest   []byte
}

func (r *fetchReader) watch() (stop func() bool) {
	return time.AfterFunc(r.stall, func() { r.give(errStalled) }).Stop
}

func (r *fetchReader) open(api hearthv1connect.NodeServiceClient, id env.SnapshotID) (err error) {
	defer r.watch()()
	r.stream, err = api.FetchSnapshot(r.ctx, &hearthv1.FetchSnapshotRequest{Snapshot: string(id)})
	return err
}

// Read implements io.Reader.
func (r *fetchReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if err := r.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *fetchReader) more() error {
	defer r.watch()()
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return err
			}
			return io.EOF
		}
		r.rest = r.stream.Msg().GetData()
	}
	return nil
}

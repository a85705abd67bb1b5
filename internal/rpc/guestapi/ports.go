package guestapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"hearth/internal/env"
	"hearth/internal/rpc"
)

// maxResponseHeader bounds what a server inside may put into its headers.
const maxResponseHeader = 64 << 10

// portPath is a parsed /ports/<environment>/<port>/<rest>.
type portPath struct {
	environment string
	port        uint16
	rest        string // escaped, begins with a slash; "" if the slash is missing
}

func parsePortPath(escaped string) (portPath, error) {
	rest, ok := strings.CutPrefix(escaped, "/ports/")
	environment, rest, ok2 := strings.Cut(rest, "/")
	number, rest, slash := strings.Cut(rest, "/")
	port, err := strconv.ParseUint(number, 10, 16)
	if !ok || !ok2 || err != nil || port == 0 {
		return portPath{}, fmt.Errorf("%w: the path must be /ports/<environment>/<port>/…", env.ErrInvalid)
	}
	p := portPath{environment: environment, port: uint16(port)}
	if slash {
		p.rest = "/" + rest
	}
	return p, nil
}

// servePort proxies one HTTP request.
func (s *Service) servePort(w http.ResponseWriter, r *http.Request) {
	to, err := parsePortPath(r.URL.EscapedPath())
	if err != nil {
		writeError(w, err)
		return
	}
	session, err := s.authorize(r.Context(), to.environment, r.Header)
	if err != nil {
		writeError(w, err)
		return
	}
	port, err := session.listed(uint32(to.port))
	if err == nil && port.Protocol != env.PortHTTP {
		err = fmt.Errorf("%w: port %d is not an HTTP port of the class: connect to it as TCP", env.ErrDenied, to.port)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	if to.rest == "" { // relative links need the slash
		target := url.URL{Path: r.URL.Path + "/", RawPath: r.URL.EscapedPath() + "/", RawQuery: r.URL.RawQuery}
		http.Redirect(w, r, target.RequestURI(), http.StatusTemporaryRedirect)
		return
	}
	leave, err := s.enter(session.Environment)
	if err != nil {
		writeError(w, err)
		return
	}
	defer leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.detaching, cancel)()
	done, err := session.use(ctx)
	if err != nil {
		writeError(w, err)
		return
	}
	defer done()
	s.proxy(session, to).ServeHTTP(w, r.WithContext(ctx))
}

// proxy makes the proxy of one request. It shares nothing with others: a
// connection to one environment can never serve another.
func (s *Service) proxy(session Session, to portPath) *httputil.ReverseProxy {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return session.Guest.Connect(ctx, to.port)
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
	return &httputil.ReverseProxy{
		Transport:      transport,
		Rewrite:        func(r *httputil.ProxyRequest) { rewrite(r, to) },
		ModifyResponse: func(r *http.Response) error { disarm(r.Header); return nil },
		FlushInterval:  -1, // streams of events arrive as they are sent
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			writeError(w, s.whyEnded(r.Context(), fmt.Errorf("%w: port %d: %w", env.ErrUnavailable, to.port, err)))
		},
	}
}

func rewrite(r *httputil.ProxyRequest, to portPath) {
	address := "127.0.0.1:" + strconv.Itoa(int(to.port))
	r.SetXForwarded()
	r.Out.Header.Set("X-Forwarded-Prefix", "/ports/"+to.environment+"/"+strconv.Itoa(int(to.port)))
	r.Out.Header.Del("Authorization") // the token is not for the inside
	r.Out.Header.Del(HeaderEnvironment)
	r.Out.Host = address // development servers refuse hosts that they do not know
	r.Out.URL.Scheme, r.Out.URL.Host = "http", address
	r.Out.URL.RawPath = to.rest
	if path, err := url.PathUnescape(to.rest); err == nil {
		r.Out.URL.Path = path
	}
}

// disarm removes headers that would bind a browser's view of the whole node.
func disarm(h http.Header) {
	for _, name := range [...]string{"Strict-Transport-Security", "Alt-Svc", "Clear-Site-Data", "Service-Worker-Allowed"} {
		h.Del(name)
	}
}

// statusOf is Connect's own table (connectrpc.com/docs/protocol, "error codes").
func statusOf(code connect.Code) int {
	switch code {
	case connect.CodeCanceled:
		return 499
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return http.StatusBadRequest
	case connect.CodeDeadlineExceeded:
		return http.StatusGatewayTimeout
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeAlreadyExists, connect.CodeAborted:
		return http.StatusConflict
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeResourceExhausted:
		return http.StatusTooManyRequests
	case connect.CodeUnimplemented:
		return http.StatusNotImplemented
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	default:
		return http.StatusInternalServerError
	}
}

// writeError answers as Connect answers a unary call.
func writeError(w http.ResponseWriter, err error) {
	err = rpc.Error(err)
	message := err.Error()
	var ce *connect.Error
	if errors.As(err, &ce) {
		message = ce.Message()
	}
	code := connect.CodeOf(err)
	body, _ := json.Marshal(map[string]string{"code": code.String(), "message": message})
	w.Header().Set("Content-Type", "application/json")
	if code == connect.CodeUnauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(statusOf(code))
	_, _ = w.Write(body)
}

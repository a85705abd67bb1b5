package guestapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/rpc"
)

// HeaderEnvironment names the environment of a call; a port's URL names its own.
const HeaderEnvironment = "Hearth-Environment"

// Session is what a valid token gives access to.
type Session struct {
	Environment env.ID
	Guest       *guest.Client
	Ports       []env.Port // of the class
	Paused      bool       // by its owner
	// Use keeps the environment awake until done is called, and wakes one that
	// sleeps because it did nothing. Nil is for one that never sleeps.
	Use func(context.Context) (done func(), err error)
}

// use is called once a request is known to be one that may wake the environment.
func (s Session) use(ctx context.Context) (done func(), err error) {
	if s.Use == nil {
		return func() {}, nil
	}
	return s.Use(ctx)
}

// guests knows the environments of this node. Authorize answers an unknown
// environment and a wrong token alike, with env.ErrDenied.
type guests interface {
	Authorize(ctx context.Context, id env.ID, token string) (Session, error)
}

// Service implements hearthv1connect.GuestServiceHandler and the ports.
type Service struct {
	log       *slog.Logger
	guests    guests
	detaching context.Context // ends when the agent stops
	detach    context.CancelFunc

	mu    sync.Mutex     // guards calls
	calls map[env.ID]int // under way, where there is one
}

var _ hearthv1connect.GuestServiceHandler = (*Service)(nil)

// New makes the service. Mount it with rpc.HandlerOptions(log, metrics, s.Gate).
func New(log *slog.Logger, g guests) *Service {
	s := &Service{log: log, guests: g, calls: map[env.ID]int{}}
	s.detaching, s.detach = context.WithCancel(context.Background())
	return s
}

// Mount adds the service and the ports to a mux.
func (s *Service) Mount(mux *http.ServeMux, opts ...connect.HandlerOption) {
	path, h := hearthv1connect.NewGuestServiceHandler(s, opts...)
	mux.Handle(path, withController(h))
	mux.HandleFunc("/ports/", s.servePort)
}

// Detach ends every stream without hanging up on what runs inside. Call it
// before the server's Shutdown, which callers' contexts cannot be told from.
func (s *Service) Detach() { s.detach() }

// maxCalls bounds the calls that are under way in one environment, as its init
// does: each costs this process goroutines and a descriptor, which the owner of one
// environment must not take from all others.
const maxCalls = 512

// enter counts a call until leave is called.
func (s *Service) enter(id env.ID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[id] >= maxCalls {
		return nil, fmt.Errorf("%w: %d calls are under way in environment %s, no more are possible: end some", env.ErrExhausted, maxCalls, id)
	}
	s.calls[id]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.calls[id]--; s.calls[id] == 0 {
			delete(s.calls, id)
		}
	}, nil
}

type sessionKey struct{}

// Gate authorises a call from its headers. It is an rpc.Gate.
func (s *Service) Gate(ctx context.Context, _ string, h http.Header) (context.Context, error) {
	session, err := s.authorize(ctx, h.Get(HeaderEnvironment), h)
	if err != nil {
		return ctx, err
	}
	return context.WithValue(ctx, sessionKey{}, session), nil
}

// maxToken bounds what is looked up, in bytes.
const maxToken = 4096

func (s *Service) authorize(ctx context.Context, environment string, h http.Header) (Session, error) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken {
		return Session{}, rpc.Unauthenticated(fmt.Errorf("%w: send the environment's token as \"authorization: Bearer <token>\"", env.ErrDenied))
	}
	if environment == "" {
		return Session{}, fmt.Errorf("%w: name the environment in the header %q", env.ErrInvalid, strings.ToLower(HeaderEnvironment))
	}
	id, err := env.ParseID(environment)
	if err != nil {
		return Session{}, err
	}
	session, err := s.guests.Authorize(ctx, id, token)
	if err != nil {
		return Session{}, err
	}
	if session.Paused {
		return Session{}, fmt.Errorf("%w: environment %s is paused: resume it first", env.ErrState, id)
	}
	session.Environment = id
	return session, nil
}

// session is whom a call comes from. leave must be called at its end.
func (s *Service) session(ctx context.Context) (_ Session, leave func(), err error) {
	session, ok := ctx.Value(sessionKey{}).(Session)
	if !ok || session.Guest == nil {
		return Session{}, nil, rpc.Unauthenticated(fmt.Errorf("%w: the call was not authorised", env.ErrDenied))
	}
	leave, err = s.enter(session.Environment)
	return session, leave, err
}

type controllerKey struct{}

// withController lets a streaming handler end its own reading; see endReads.
func withController(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), controllerKey{}, http.NewResponseController(w))
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// endReads makes a blocked Receive of this call return, so that the goroutine
// in it can be waited for before the handler returns.
func endReads(ctx context.Context) {
	if rc, ok := ctx.Value(controllerKey{}).(*http.ResponseController); ok {
		_ = rc.SetReadDeadline(time.Unix(1, 0))
	}
}

// whyEnded chooses the error of a stream whose connection to the inside broke.
func (s *Service) whyEnded(ctx context.Context, err error) error {
	switch {
	case s.detaching.Err() != nil:
		return fmt.Errorf("%w: the node's agent is restarting: what runs inside goes on; connect again", env.ErrUnavailable)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return err
	}
}

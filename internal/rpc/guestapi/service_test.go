package guestapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"hearth/internal/env"
	"hearth/internal/guest"
)

// oneGuest knows one environment and one token.
type oneGuest struct {
	id      env.ID
	session Session
}

const goodToken = "ht1.good"

func (o oneGuest) Authorize(_ context.Context, id env.ID, token string) (Session, error) {
	if id != o.id || token != goodToken {
		return Session{}, fmt.Errorf("%w: no environment with this id and token on this node", env.ErrDenied)
	}
	return o.session, nil
}

func newOneGuest(paused bool) oneGuest {
	dial := func(context.Context) (guest.Conn, error) {
		return nil, fmt.Errorf("%w: nobody is at home", env.ErrUnavailable)
	}
	return oneGuest{id: env.NewID(), session: Session{
		Guest: guest.NewWithDial(dial), Paused: paused,
		Ports: []env.Port{{Name: "web", Number: 8080, Protocol: env.PortHTTP}, {Name: "db", Number: 5432, Protocol: env.PortTCP}},
	}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestGateRefusesWhoeverDoesNotShowTheToken(t *testing.T) {
	g := newOneGuest(false)
	s := New(quiet(), g)
	for name, c := range map[string]struct {
		authorization, environment string
		want                       string
	}{
		"no token":          {"", string(g.id), "bearer"},
		"another scheme":    {"Basic eDp5", string(g.id), "bearer"},
		"huge token":        {"Bearer " + strings.Repeat("x", 5000), string(g.id), "bearer"},
		"no environment":    {"Bearer " + goodToken, "", "name the environment"},
		"bad environment":   {"Bearer " + goodToken, "../../x", "not an id"},
		"wrong token":       {"Bearer wrong", string(g.id), "no environment"},
		"other environment": {"Bearer " + goodToken, string(env.NewID()), "no environment"},
	} {
		h := http.Header{"Authorization": {c.authorization}, HeaderEnvironment: {c.environment}}
		ctx, err := s.Gate(t.Context(), "", h)
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := s.session(ctx); err == nil {
			t.Errorf("%s: a session was given", name)
		}
	}
	ctx, err := s.Gate(t.Context(), "", http.Header{"Authorization": {"bearer " + goodToken}, HeaderEnvironment: {string(g.id)}})
	if err != nil {
		t.Fatal(err)
	}
	session, leave, err := s.session(ctx)
	if err != nil || session.Environment != g.id {
		t.Fatalf("%+v, %v", session, err)
	}
	leave()
}

// Whoever has the token of one environment takes no more of the agent than is one
// environment's, and nothing from the others.
func TestCallsOfOneEnvironmentAreBounded(t *testing.T) {
	s := New(quiet(), newOneGuest(false))
	one, other := env.NewID(), env.NewID()
	var leaves []func()
	for i := range maxCalls {
		leave, err := s.enter(one)
		if err != nil {
			t.Fatalf("call %d: %v", i+1, err)
		}
		leaves = append(leaves, leave)
	}
	if _, err := s.enter(one); !errors.Is(err, env.ErrExhausted) || !strings.Contains(err.Error(), string(one)) {
		t.Errorf("one more call: %v", err)
	}
	leave, err := s.enter(other)
	if err != nil {
		t.Fatal("another environment:", err)
	}
	leave()
	leaves[0]()
	again, err := s.enter(one)
	if err != nil {
		t.Fatal("after one has ended:", err)
	}
	again()
	for _, leave := range leaves[1:] {
		leave()
	}
	if len(s.calls) != 0 {
		t.Errorf("calls are still counted: %v", s.calls)
	}
}

func TestPausedEnvironmentAnswersPaused(t *testing.T) {
	g := newOneGuest(true)
	h := http.Header{"Authorization": {"Bearer " + goodToken}, HeaderEnvironment: {string(g.id)}}
	if _, err := New(quiet(), g).Gate(t.Context(), "", h); !errors.Is(err, env.ErrState) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("%v", err)
	}
}

func TestHandlersRefuseWithoutAGate(t *testing.T) {
	if _, err := New(quiet(), newOneGuest(false)).ListDir(t.Context(), nil); !errors.Is(err, env.ErrDenied) && !strings.Contains(err.Error(), "not authorised") {
		t.Errorf("%v", err)
	}
}

func TestPortsAnswerWithConnectsCodes(t *testing.T) {
	g := newOneGuest(false)
	mux := http.NewServeMux()
	New(quiet(), g).Mount(mux)
	base := "/ports/" + string(g.id)
	for name, c := range map[string]struct {
		path, token string
		status      int
		body        string
	}{
		"no token":     {base + "/8080/", "", 401, "unauthenticated"},
		"wrong token":  {base + "/8080/", "x", 403, "permission_denied"},
		"not listed":   {base + "/9/", goodToken, 403, "not among the ports"},
		"not HTTP":     {base + "/5432/", goodToken, 403, "not an HTTP port"},
		"no port":      {base + "/abc/", goodToken, 400, "the path must be"},
		"port 70000":   {base + "/70000/", goodToken, 400, "the path must be"},
		"no slash":     {base + "/8080", goodToken, 307, ""},
		"not at home":  {base + "/8080/x", goodToken, 503, "nobody is at home"},
		"not a bearer": {"/ports/", goodToken, 400, "the path must be"},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"plain", "\xff\xfe", `a\x41b`, `\x`, `\xg0`, "ü\x80ü", `\\x41`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		text := encodeName(name)
		if !strings.ContainsRune(name, 0) && decodePath(text) != name {
			t.Fatalf("%q is spelled %q, which means %q", name, text, decodePath(text))
		}
		if strings.ToValidUTF8(text, "") != text {
			t.Fatalf("%q is not UTF-8", text)
		}
	})
}

func TestPagesFitAMessage(t *testing.T) {
	page := guest.Page{}
	for i := range 10_000 {
		page.Entries = append(page.Entries, guest.FileInfo{Name: fmt.Sprintf("%05d", i), Target: strings.Repeat("t", 4000)})
	}
	res := pageOf(page)
	if len(res.Entries) == 10_000 || res.NextPageToken == "" {
		t.Errorf("%d entries of 40 MB in one page", len(res.Entries))
	}
}

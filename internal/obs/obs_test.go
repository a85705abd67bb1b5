package obs

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestLoggersTakeFormatAndLevel(t *testing.T) {
	for _, tc := range []struct{ format, level, want, not string }{
		{"json", "debug", `{"time"`, "zzz"},
		{"text", "warn", "level=WARN", "level=INFO"},
		{"", "", "level=INFO", "level=DEBUG"},
	} {
		var out bytes.Buffer
		log, err := NewLogger(&out, tc.format, tc.level)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("x")
		log.Info("x")
		log.Warn("x")
		if s := out.String(); !strings.Contains(s, tc.want) || strings.Contains(s, tc.not) {
			t.Errorf("%s %s: %s", tc.format, tc.level, s)
		}
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}} {
		if _, err := NewLogger(io.Discard, bad[0], bad[1]); !errors.Is(err, env.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTheHandlerShowsMetricsHealthAndReadiness(t *testing.T) {
	var sick error
	h := Handler(NewRegistry("v1"), func() error { return sick })
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, `hearth_build_info{version="v1"} 1`) {
		t.Errorf("metrics: %d %.200s", code, body)
	}
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("ready: %d", code)
	}
	sick = errors.New("starting")
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "starting") {
		t.Errorf("not ready: %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("health: %d", code)
	}
}

package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/env"
)

func TestClientSourcesHaveTheirOrder(t *testing.T) {
	file := write(t, "config.yaml", "server: file.example:7400\ntoken: file-token\nca: ca.pem\n")
	getenv := func(vars map[string]string) func(string) string {
		return func(k string) string {
			if k == "HEARTH_CONFIG" {
				return file
			}
			return vars[k]
		}
	}
	for name, tc := range map[string]struct {
		flags Client
		vars  map[string]string
		want  Client
	}{
		"file alone":                  {want: Client{Server: "https://file.example:7400", Token: "file-token", CA: filepath.Join(filepath.Dir(file), "ca.pem")}},
		"environment over file":       {vars: map[string]string{"HEARTH_SERVER": "https://env.example:1", "HEARTH_CA": "/e.pem"}, want: Client{Server: "https://env.example:1", Token: "file-token", CA: "/e.pem"}},
		"flags over environment":      {flags: Client{Server: "flag.example:2"}, vars: map[string]string{"HEARTH_SERVER": "env.example:1", "HEARTH_TOKEN": "t"}, want: Client{Server: "https://flag.example:2", Token: "t", CA: filepath.Join(filepath.Dir(file), "ca.pem")}},
		"socket over file":            {vars: map[string]string{"HEARTH_NODE_SOCKET": "/s"}, want: Client{NodeSocket: "/s", Token: "file-token", CA: filepath.Join(filepath.Dir(file), "ca.pem")}},
		"server variable over socket": {vars: map[string]string{"HEARTH_SERVER": "https://e.example:1", "HEARTH_NODE_SOCKET": "/s"}, want: Client{Server: "https://e.example:1", Token: "file-token", CA: filepath.Join(filepath.Dir(file), "ca.pem")}},
		"server flag over socket": {flags: Client{Server: "flag.example:2"}, vars: map[string]string{"HEARTH_NODE_SOCKET": "/s"},
			want: Client{Server: "https://flag.example:2", Token: "file-token", CA: filepath.Join(filepath.Dir(file), "ca.pem")}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := LoadClient(tc.flags, getenv(tc.vars))
			if err != nil || got != tc.want {
				t.Errorf("client = %+v, %v\nwant %+v", got, err, tc.want)
			}
		})
	}
}

func TestBadClientConfigurationIsNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		flags Client
		file  string
		mode  os.FileMode
		want  string
	}{
		"both":         {flags: Client{Server: "a:1", NodeSocket: "/s"}, want: "keep one"},
		"plain http":   {flags: Client{Server: "http://a:1"}, want: "write https://"},
		"no host":      {flags: Client{Server: "https://"}, want: "want https://host:port"},
		"with a path":  {flags: Client{Server: "https://a:1/x"}, want: "want https://host:port"},
		"unknown key":  {file: "sever: x\n", want: "did you mean server?"},
		"open to all":  {file: "token: x\n", mode: 0o644, want: "chmod 600"},
		"wrong in yml": {file: "server: [a]\n", want: "server: want text, have a list"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, "config.yaml", tc.file)
			if tc.mode != 0 {
				if err := os.Chmod(path, tc.mode); err != nil {
					t.Fatal(err)
				}
			}
			_, err := LoadClient(tc.flags, func(k string) string {
				if k == "HEARTH_CONFIG" {
					return path
				}
				return ""
			})
			if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want ErrInvalid with %q", err, tc.want)
			}
		})
	}
	nothing := func(string) string { return "" }
	if c, err := LoadClient(Client{}, nothing); err != nil || c != (Client{}) {
		t.Errorf("nothing given = %+v, %v", c, err)
	}
	if _, err := (Client{CA: "/does/not/exist.pem"}).Roots(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "HEARTH_CA") {
		t.Errorf("missing CA: %v", err)
	}
	if _, err := (Client{CA: "-----BEGIN nothing"}).Roots(); !errors.Is(err, env.ErrInvalid) {
		t.Errorf("bad PEM: %v", err)
	}
}

func TestAPIKeysAreMatchedByTheirHash(t *testing.T) {
	d, _ := DigestOf("secret").MarshalText()
	path := write(t, "keys.yaml", "keys:\n- name: backend\n  sha256: "+string(d)+"\n")
	keys, err := LoadAPIKeys(path)
	if err != nil || len(keys) != 1 || keys[0].Tenant != "default" {
		t.Fatalf("keys = %+v, %v", keys, err)
	}
	if k, ok := MatchAPIKey(keys, "secret"); !ok || k.Name != "backend" {
		t.Errorf("the key was not matched: %+v %v", k, ok)
	}
	for _, wrong := range []string{"", "Secret", string(d)} {
		if _, ok := MatchAPIKey(keys, wrong); ok {
			t.Errorf("%q was matched", wrong)
		}
	}
	for content, want := range map[string]string{
		"keys:\n- {name: a, sha256: abcd}\n": "64 hex digits",
		"keys:\n- {name: a}\n":               "keys[0].sha256: is missing",
		"keys:\n- {name: a, sha256: \"" + string(d) + "\"}\n- {name: b, sha256: \"" + string(d) + "\"}\n": "keys[1].sha256",
	} {
		if _, err := LoadAPIKeys(write(t, "keys.yaml", content)); !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

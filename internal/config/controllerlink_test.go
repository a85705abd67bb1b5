package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func loadText(t *testing.T, host Host, text string) (Agent, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nodeagent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadAgent(path, host)
}

func TestAnAgentFindsItsControllerInOneWay(t *testing.T) {
	a, err := loadText(t, testHost(), "controller:\n  kubernetes: {}\n")
	if err != nil {
		t.Fatal(err)
	}
	want := &ControllerLink{Kubernetes: &ControllerKube{
		Namespace: "hearth-system", Lease: "hearth-controller", TokenFile: "/var/run/secrets/hearth.run/token",
	}}
	if diff := cmp.Diff(want, a.Controller); diff != "" {
		t.Errorf("controller (-want +got):\n%s", diff)
	}
	for text, words := range map[string]string{
		"controller: {}": "controller.address",
		"controller: {kubernetes: {}, address: 'c:1'}":               "excludes address",
		"controller: {kubernetes: {}, joinTokenFile: /t}":            "excludes address",
		"controller: {kubernetes: {lease: A_B}}":                     "controller.kubernetes.lease",
		"controller: {kubernetes: {namespace: x/y, tokenFile: rel}}": "controller.kubernetes.tokenFile",
		"controller: {kubernetes: {name: x}}":                        "unknown key",
	} {
		if _, err := loadText(t, testHost(), text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", text, err, words)
		}
	}
}

func TestAPodSaysWhereItsNodeIsReached(t *testing.T) {
	host := testHost()
	host.Address = "192.0.2.7"
	if got := DefaultAgent(host).API.Advertise; got != "192.0.2.7:7401" {
		t.Errorf("advertise = %s", got)
	}
	a, err := loadText(t, host, "api: {advertise: 'node.example:7401'}")
	if err != nil || a.API.Advertise != "node.example:7401" {
		t.Errorf("advertise = %s, %v", a.API.Advertise, err)
	}
}

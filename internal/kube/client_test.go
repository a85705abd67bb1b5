package kube

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
)

// What the caller gives comes between the client and the network, unless something
// else is there already.
func TestOnlyADirectServerIsWrittenToAsTheCallerSays(t *testing.T) {
	proxy := func(*http.Request) (*url.URL, error) { return url.Parse("http://proxy.test:3128") }
	for name, tc := range map[string]struct {
		rc   rest.Config
		want bool
	}{
		"direct":     {rest.Config{Host: "https://api.test:6443", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, true},
		"plain":      {rest.Config{Host: "http://api.test:8080"}, false},
		"by a proxy": {rest.Config{Host: "https://api.test:6443", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, Proxy: proxy}, false},
	} {
		asked := false
		_, err := newClient(&tc.rc, func(c *tls.Config, rest http.RoundTripper) http.RoundTripper {
			asked = c != nil && rest != nil
			return rest
		})
		if err != nil {
			t.Fatal(name, err)
		}
		if asked != tc.want {
			t.Errorf("%s: asked = %v", name, asked)
		}
	}
}

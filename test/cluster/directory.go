package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// directory is what the API server last said of services.
type directory struct {
	client *http.Client
	server string

	mu    sync.Mutex // guards names and read
	names map[string][]netip.Addr
	read  time.Time
}

func newDirectory(o *Options) (*directory, error) {
	pair, err := tls.LoadX509KeyPair(o.path("pki/admin.crt"), o.path("pki/admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(o.path("pki/ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &directory{
		server: o.server(),
		client: &http.Client{Timeout: time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13},
		}},
	}, nil
}

func (d *directory) handle(query []byte) []byte {
	name, _, _, err := question(query)
	if err != nil {
		return nil
	}
	if strings.HasSuffix("."+name, "."+domain) {
		return respond(query, d.lookup)
	}
	return forward(query)
}

// lookup asks the API server again if its last answer is over a second old.
func (d *directory) lookup(name string) ([]netip.Addr, byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.read) > time.Second {
		if names, err := d.list(); err == nil {
			d.names, d.read = names, time.Now()
		}
	}
	if d.names == nil {
		return nil, rcodeServer
	}
	addrs, ok := d.names[name]
	if !ok {
		return nil, rcodeNoName
	}
	return addrs, rcodeOK
}

// meta is what is read of any object's metadata.
type meta struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`
}

type serviceList struct {
	Items []struct {
		Metadata meta `json:"metadata"`
		Spec     struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	} `json:"items"`
}

type sliceList struct {
	Items []struct {
		Metadata  meta `json:"metadata"`
		Endpoints []struct {
			Addresses  []string `json:"addresses"`
			Hostname   string   `json:"hostname"`
			Conditions struct {
				Ready *bool `json:"ready"`
			} `json:"conditions"`
		} `json:"endpoints"`
	} `json:"items"`
}

func (d *directory) list() (map[string][]netip.Addr, error) {
	var services serviceList
	var slices sliceList
	if err := d.get("/api/v1/services", &services); err != nil {
		return nil, err
	}
	if err := d.get("/apis/discovery.k8s.io/v1/endpointslices", &slices); err != nil {
		return nil, err
	}
	return serviceNames(services, slices), nil
}

// serviceNames follows the DNS specification of Kubernetes: a service has its
// cluster address, a headless one those of its ready endpoints, each of which
// with a host name has a name of its own.
func serviceNames(services serviceList, slices sliceList) map[string][]netip.Addr {
	names := map[string][]netip.Addr{}
	full := func(service, namespace string) string { return service + "." + namespace + ".svc." + domain }
	headless := map[string]bool{}
	for _, s := range services.Items {
		name := full(s.Metadata.Name, s.Metadata.Namespace)
		headless[name] = s.Spec.ClusterIP == "None"
		names[name] = nil
		if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil && a.Is4() {
			names[name] = []netip.Addr{a}
		}
	}
	for _, s := range slices.Items {
		name := full(s.Metadata.Labels["kubernetes.io/service-name"], s.Metadata.Namespace)
		for _, e := range s.Endpoints {
			if !headless[name] || (e.Conditions.Ready != nil && !*e.Conditions.Ready) {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil || !a.Is4() {
					continue
				}
				names[name] = append(names[name], a)
				if e.Hostname != "" {
					names[e.Hostname+"."+name] = append(names[e.Hostname+"."+name], a)
				}
			}
		}
	}
	return names
}

func (d *directory) get(path string, into any) error {
	resp, err := d.client.Get(d.server + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(into)
}

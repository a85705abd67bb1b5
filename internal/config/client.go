package config

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/env"
)

// Client is where hearthctl's calls go, from flags, the process's environment
// and its config.yaml.
type Client struct {
	// Server is the controller's URL, https://host:port.
	Server string `json:"server,omitempty"`
	// Token is the API key.
	Token string `json:"token,omitempty"`
	// CA is the authority of the server's certificate, a path or PEM; "" is the
	// system's authorities.
	CA string `json:"ca,omitempty"`
	// NodeSocket is an agent's Unix socket, used instead of Server: for
	// operators on a node.
	NodeSocket string `json:"nodeSocket,omitempty"`
}

// LoadClient joins flags (empty fields are flags not given), the variables
// HEARTH_SERVER, HEARTH_TOKEN, HEARTH_CA and HEARTH_NODE_SOCKET, and
// $XDG_CONFIG_HOME/hearth/config.yaml (HEARTH_CONFIG names another file), in
// falling precedence. The first of them that names a server or a node socket
// decides between the two; among the variables the server wins, since
// HEARTH_NODE_SOCKET also serves nodeagent's commands. Errors match
// env.ErrInvalid.
func LoadClient(flags Client, getenv func(string) string) (Client, error) {
	file, path, err := clientFile(getenv)
	if err != nil {
		return Client{}, err
	}
	vars := Client{
		Server: getenv("HEARTH_SERVER"), Token: getenv("HEARTH_TOKEN"),
		CA: getenv("HEARTH_CA"), NodeSocket: getenv("HEARTH_NODE_SOCKET"),
	}
	if vars.Server != "" {
		vars.NodeSocket = "" // it may be set for nodeagent's commands
	}
	var c Client
	for _, s := range []struct {
		name string
		from Client
	}{{"flags", flags}, {"environment", vars}, {path, file}} {
		if s.from.Server != "" && s.from.NodeSocket != "" {
			return Client{}, fmt.Errorf("%s: %w: a server and a node socket are both named: keep one", s.name, env.ErrInvalid)
		}
		if c.Server == "" && c.NodeSocket == "" {
			c.Server, c.NodeSocket = s.from.Server, s.from.NodeSocket
		}
		def(&c.Token, s.from.Token)
		def(&c.CA, s.from.CA)
	}
	return c, c.normalise()
}

// Roots returns the authorities that CA names, nil for the system's.
func (c Client) Roots() (*x509.CertPool, error) {
	if c.CA == "" {
		return nil, nil
	}
	pem := []byte(c.CA)
	if !strings.Contains(c.CA, "-----BEGIN") {
		data, err := readBounded(c.CA)
		if err != nil {
			return nil, fmt.Errorf("read certificate authority: %w: set HEARTH_CA to the controller's ca.pem", err)
		}
		pem = data
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificate authority: %w: no PEM certificate in HEARTH_CA or ca", env.ErrInvalid)
	}
	return pool, nil
}

func (c *Client) normalise() error {
	if c.Server == "" {
		return nil
	}
	if !strings.Contains(c.Server, "://") {
		c.Server = "https://" + c.Server
	}
	u, err := url.Parse(c.Server)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return fmt.Errorf("server %.128q: %w: want https://host:port", c.Server, env.ErrInvalid)
	case u.Scheme != "https":
		return fmt.Errorf("server %.128q: %w: the controller speaks TLS only: write https://", c.Server, env.ErrInvalid)
	}
	c.Server = "https://" + u.Host
	return nil
}

// clientFile reads the file, which need not exist unless HEARTH_CONFIG names it.
func clientFile(getenv func(string) string) (Client, string, error) {
	path, named := getenv("HEARTH_CONFIG"), true
	if path == "" {
		dir := getenv("XDG_CONFIG_HOME")
		if dir == "" {
			if getenv("HOME") == "" {
				return Client{}, "", nil
			}
			dir = filepath.Join(getenv("HOME"), ".config")
		}
		path, named = filepath.Join(dir, "hearth", "config.yaml"), false
	}
	var c Client
	err := loadFile(path, &c)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return Client{}, path, nil
	}
	if err != nil {
		return Client{}, path, err
	}
	if st, err := os.Stat(path); c.Token != "" && err == nil && st.Mode().Perm()&0o077 != 0 {
		return Client{}, path, fmt.Errorf("%s: %w: it holds a token and others may read it: chmod 600 %s", path, env.ErrInvalid, path)
	}
	c.CA = relativeTo(path, c.CA)
	return c, path, nil
}

// relativeTo lets a file name another beside it.
func relativeTo(file, ca string) string {
	if ca == "" || filepath.IsAbs(ca) || bytes.Contains([]byte(ca), []byte("-----BEGIN")) {
		return ca
	}
	return filepath.Join(filepath.Dir(file), ca)
}

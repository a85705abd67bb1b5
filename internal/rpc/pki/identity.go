package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"hearth/internal/env"
)

// Role is what a certificate's holder may be.
type Role string

// The roles.
const (
	RoleNode       Role = "node"
	RoleController Role = "controller"
)

// Identity names one process of one instance.
type Identity struct {
	Instance string
	Role     Role
	Name     string // the node's name; "controller" for the controller
}

// ReservedDomain ends the DNS names that only the authority gives out.
const ReservedDomain = "hearth.internal"

// Controller is the identity of an instance's controller.
func Controller(instance string) Identity {
	return Identity{Instance: instance, Role: RoleController, Name: "controller"}
}

// Node is the identity of one agent.
func Node(instance, name string) Identity {
	return Identity{Instance: instance, Role: RoleNode, Name: name}
}

// names are RFC 1123 subdomains, as Kubernetes nodes have them, a little shorter
// so that ServerName fits into 253 characters.
var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

const maxName = 180

// Check refuses what cannot be put into a certificate, with env.ErrInvalid.
func (id Identity) Check() error {
	if id.Role != RoleNode && id.Role != RoleController {
		return fmt.Errorf("%w: role %.32q", env.ErrInvalid, id.Role)
	}
	if len(id.Instance) > 32 || !names.MatchString(id.Instance) || strings.Contains(id.Instance, ".") {
		return fmt.Errorf("%w: instance %.64q: use up to 32 of a-z, 0-9 and -", env.ErrInvalid, id.Instance)
	}
	if len(id.Name) > maxName || !names.MatchString(id.Name) {
		return fmt.Errorf("%w: name %.64q: use a DNS name in lower case of up to %d characters", env.ErrInvalid, id.Name, maxName)
	}
	return nil
}

// String is the identity's URI.
func (id Identity) String() string { return id.uri().String() }

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "hearth", Host: id.Instance, Path: "/" + string(id.Role) + "/" + id.Name}
}

// ServerName is the DNS name that the certificate of id carries beside its
// addresses. A client that must reach exactly this process, wherever it is,
// verifies this name.
func (id Identity) ServerName() string {
	return fmt.Sprintf("%s.%s.%s.%s", id.Name, id.Role, id.Instance, ReservedDomain)
}

// IdentityOf reads the identity of a certificate that has been verified. A
// certificate with none, more than one or a malformed one is env.ErrDenied.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "hearth" {
		return Identity{}, fmt.Errorf("%w: certificate %.64q carries no identity", env.ErrDenied, cert.Subject.CommonName)
	}
	u := cert.URIs[0]
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := Identity{Instance: u.Host, Role: Role(role), Name: name}
	if !ok || id.Check() != nil || id.String() != u.String() {
		return Identity{}, fmt.Errorf("%w: certificate identity %.128q is malformed", env.ErrDenied, u)
	}
	return id, nil
}

// Package kubetest starts a real API server for tests: etcd and kube-apiserver
// on the loopback, with nothing that would act on what is written there. It is
// imported by tests only.
package kubetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// BinVar names the directory that has etcd and kube-apiserver.
const BinVar = "HEARTH_CLUSTER_BIN"

// Issuer is that of the service accounts' tokens.
const Issuer = "https://kubernetes.default.svc.cluster.local"

const adminToken = "the-tests-own"

// Server is one API server.
type Server struct {
	t      testing.TB
	dir    string
	url    string
	ca     []byte
	key    *rsa.PrivateKey // of the service accounts' tokens
	api    kubernetes.Interface
	server *exec.Cmd
}

// Start starts one until the test's end. It skips the test if there are no
// programs for it.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := os.Getenv(BinVar)
	if bin == "" {
		t.Skipf("%s is not set: it names the directory with etcd and kube-apiserver (make cluster-binaries)", BinVar)
	}
	s := &Server{t: t, dir: t.TempDir()}
	etcd, peer := "http://"+freeAddress(t), "http://"+freeAddress(t)
	s.run(bin, "etcd", "--data-dir", filepath.Join(s.dir, "etcd"), "--log-level", "warn", "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	address := freeAddress(t)
	s.url = "https://" + address
	s.writeKeys()
	_, port, err := net.SplitHostPort(address)
	s.check(err)
	s.server = s.run(bin, "kube-apiserver", "--etcd-servers="+etcd,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--secure-port="+port,
		"--tls-cert-file="+s.path("server.crt"), "--tls-private-key-file="+s.path("server.key"), "--token-auth-file="+s.path("tokens.csv"),
		"--service-account-issuer="+Issuer, "--service-account-key-file="+s.path("sa.key"), "--service-account-signing-key-file="+s.path("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=Node,RBAC", "--anonymous-auth=true", "--cert-dir="+s.dir)
	s.api, err = kubernetes.NewForConfig(s.config(adminToken))
	s.check(err)
	s.waitReady()
	return s
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) config(token string) *rest.Config {
	return &rest.Config{Host: s.url, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.ca}, QPS: -1}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run starts a program, which ends with the test, or with this process.
func (s *Server) run(bin, name string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.Create(s.path(name + ".log"))
	s.check(err)
	cmd := exec.Command(filepath.Join(bin, name), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.check(cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if s.t.Failed() {
			text, _ := os.ReadFile(s.path(name + ".log"))
			s.t.Logf("end of the log of %s:\n%s", name, text[max(0, len(text)-4000):])
		}
	})
	return cmd
}

func (s *Server) waitReady() {
	s.t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Second)
		_, err = s.api.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	s.t.Fatalf("the API server is not ready after 2 minutes: %v", err)
}

// Silence makes the API server accept connections and answer nothing, until the
// function that it returns is called.
func (s *Server) Silence() (speak func()) {
	s.t.Helper()
	s.check(s.server.Process.Signal(syscall.SIGSTOP))
	return func() {
		s.t.Helper()
		s.check(s.server.Process.Signal(syscall.SIGCONT))
	}
}

// writeKeys makes the server's certificate, which is its own authority, the key
// of the tokens and the administrator's token.
func (s *Server) writeKeys() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.check(err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	s.check(err)
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.write("server.crt", s.ca)
	s.writeKey("server.key", key)
	s.key, err = rsa.GenerateKey(rand.Reader, 2048)
	s.check(err)
	s.writeKey("sa.key", s.key)
	s.write("tokens.csv", fmt.Appendf(nil, "%s,admin,admin,system:masters\n", adminToken))
}

func (s *Server) writeKey(name string, key any) {
	s.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	s.check(err)
	s.write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (s *Server) write(name string, data []byte) {
	s.t.Helper()
	s.check(os.WriteFile(s.path(name), data, 0o600))
}

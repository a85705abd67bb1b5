package cluster

import (
	"context"
	"fmt"
	"net"
	"time"
)

// ServeClusterDNS is the cluster's resolver for pods, in the place of CoreDNS:
// names of services and of headless services' endpoints, type A only; all else
// is asked of the internet's host. With the API server down it goes on with
// what it knows.
func ServeClusterDNS(ctx context.Context, dir string) error {
	o, err := loadOptions(dir)
	if err != nil {
		return err
	}
	d, err := newDirectory(&o)
	if err != nil {
		return err
	}
	addr := fmt.Sprintf("%s:%d", o.nodes()[0].IP(), dnsPort)
	packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return err
	}
	streams, err := new(net.ListenConfig).Listen(ctx, "tcp4", addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				failed <- err
				return
			}
			go serveDNSStream(conn, d.handle)
		}
	}()
	go func() { failed <- serveDNSPackets(packets, d.handle) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func serveDNSPackets(conn net.PacketConn, handle func([]byte) []byte) error {
	for {
		buf := make([]byte, maxDNS)
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		go func() {
			if reply := handle(buf[:n]); reply != nil {
				_, _ = conn.WriteTo(reply, peer) // as with any datagram, the asker retries
			}
		}()
	}
}

// forward asks the internet's resolver; nil if it does not answer.
func forward(query []byte) []byte {
	conn, err := net.DialTimeout("udp4", net.JoinHostPort(PublicAddresses[0], "53"), time.Second)
	if err != nil {
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write(query); err != nil {
		return nil
	}
	buf := make([]byte, maxDNS)
	n, err := conn.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// applyDNSService makes the Service that pods' resolv.conf names; its endpoint
// is a process of node1.
func (c *Cluster) applyDNSService() error {
	return c.Apply(fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: %s
  ports:
  - {name: dns, protocol: UDP, port: 53}
  - {name: dns-tcp, protocol: TCP, port: 53}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [%s], conditions: {ready: true}}]
ports:
- {name: dns, protocol: UDP, port: %d}
- {name: dns-tcp, protocol: TCP, port: %d}
`, dnsServiceIP, c.Node(1).IP(), dnsPort, dnsPort))
}

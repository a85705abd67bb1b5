package controllerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// Fleet serves hearth.v1.FleetService.
type Fleet struct {
	log      *slog.Logger
	fleet    *fleet.Fleet
	ca       *pki.CA
	reviewer reviewer // nil without Kubernetes
}

var _ hearthv1connect.FleetServiceHandler = (*Fleet)(nil)

// NewFleet makes the service; ca signs the agents' certificates. A nil r knows
// no service account tokens.
func NewFleet(log *slog.Logger, f *fleet.Fleet, ca *pki.CA, r reviewer) *Fleet {
	return &Fleet{log, f, ca, r}
}

// Join signs an agent's key, if mayJoin allows it or by the certificate that the
// agent has.
func (s *Fleet) Join(ctx context.Context, r *hearthv1.JoinRequest) (*hearthv1.JoinResponse, error) {
	id := pki.Node(s.ca.Instance(), r.GetNode())
	if err := id.Check(); err != nil {
		return nil, err
	}
	renews := rpc.CallerFrom(ctx).Identity == id
	if !renews {
		if err := s.mayJoin(ctx, r); err != nil {
			return nil, err
		}
	}
	cert, err := s.ca.SignRequest(id, r.GetCsrDer(), time.Now())
	if err != nil {
		return nil, err
	}
	s.log.Info("certificate signed", "node", r.GetNode(), "renewal", renews)
	return &hearthv1.JoinResponse{CertificatePem: cert, CaPem: s.ca.PEM()}, nil
}

// Report takes one node's stream: the full inventory first. Each request is
// answered, in order.
func (s *Fleet) Report(ctx context.Context, stream *connect.BidiStream[hearthv1.ReportRequest, hearthv1.ReportResponse]) error {
	caller := rpc.CallerFrom(ctx).Identity
	if caller.Role != pki.RoleNode || caller.Instance != s.ca.Instance() {
		return rpc.Unauthenticated(fmt.Errorf("%w: reports need a node's certificate; join first", env.ErrDenied))
	}
	first, err := stream.Receive()
	if err != nil {
		return ended(err)
	}
	if first.GetInventory() == nil {
		return fmt.Errorf("%w: the first report must be an inventory", env.ErrInvalid)
	}
	if err := checkReport(caller, first); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(first.GetAddress()); err != nil {
		return fmt.Errorf("%w: node address %.64q is not host:port", env.ErrInvalid, first.GetAddress())
	}
	session := s.fleet.Connect(caller.Name, first.GetAddress())
	defer session.Close()
	s.log.Info("node connected", "node", caller.Name, "address", first.GetAddress())
	err = s.serve(caller, session, stream, first)
	s.log.Info("node disconnected", "node", caller.Name, "reason", err)
	return err
}

func (s *Fleet) serve(caller pki.Identity, session *fleet.Session,
	stream *connect.BidiStream[hearthv1.ReportRequest, hearthv1.ReportResponse], r *hearthv1.ReportRequest,
) error {
	for {
		if err := checkReport(caller, r); err != nil {
			return err
		}
		stale, err := take(session, r)
		if err != nil {
			return err
		}
		if err := stream.Send(&hearthv1.ReportResponse{
			Sequence: r.GetSequence(), Epoch: s.fleet.Epoch(), Interval: durationpb.New(s.fleet.Heartbeat()),
			FenceAfter: durationpb.New(s.fleet.FenceAfter()), Stale: stale,
		}); err != nil {
			return err
		}
		if r, err = stream.Receive(); err != nil {
			return ended(err)
		}
	}
}

// ended tells an orderly end from a fault.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// checkReport holds the node to the name in its certificate.
func checkReport(caller pki.Identity, r *hearthv1.ReportRequest) error {
	if r.GetNode() != caller.Name {
		return fmt.Errorf("%w: the certificate is of node %s, the report of %.64q", env.ErrDenied, caller.Name, r.GetNode())
	}
	if inv := r.GetInventory(); inv != nil && inv.GetNode() != "" && inv.GetNode() != caller.Name {
		return fmt.Errorf("%w: the certificate is of node %s, the inventory of %.64q", env.ErrDenied, caller.Name, inv.GetNode())
	}
	return nil
}

// take books a report. Stale are the environments of an inventory that must not
// run there.
func take(session *fleet.Session, r *hearthv1.ReportRequest) (stale []string, err error) {
	switch m := r.GetMessage().(type) {
	case *hearthv1.ReportRequest_Inventory:
		return session.Inventory(m.Inventory)
	case *hearthv1.ReportRequest_Heartbeat:
		return nil, session.Heartbeat(m.Heartbeat)
	case *hearthv1.ReportRequest_Detection:
		return nil, session.Detection(m.Detection)
	default:
		return nil, fmt.Errorf("%w: report %d holds nothing that this controller knows", env.ErrInvalid, r.GetSequence())
	}
}

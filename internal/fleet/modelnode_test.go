package fleet_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

func (l *life) dial(name, _ string) hearthv1connect.NodeServiceClient {
	return &modelClient{l: l, n: l.nodes[name]}
}

// modelNode keeps books like an agent: a claim's key answers as it did for as long
// as the environment is there.
type modelNode struct {
	m    *model
	name string

	mu    sync.Mutex // guards all below
	envs  map[string]*hearthv1.Environment
	keys  map[string]string // claim key to environment
	forks map[string]*hearthv1.NodeForkResponse
}

func (n *modelNode) report(l *life) {
	n.m.pause(time.Second)
	s := l.fleet.Connect(n.name, "h:1")
	defer s.Close()
	for i := 0; !l.isDead(); i++ {
		inv := &hearthv1.InventoryResponse{Room: &hearthv1.Room{SlotsMax: 1000}, Pools: []*hearthv1.Pool{
			{Class: "small", Ready: 100}, {Class: "brief", Ready: 100, Ephemeral: true}}}
		n.mu.Lock()
		for _, e := range n.envs {
			inv.Environments = append(inv.Environments, proto.CloneOf(e))
		}
		n.mu.Unlock()
		if i%5 == 0 {
			n.m.pause(50 * time.Millisecond) // calls overtake it
			_, _ = s.Inventory(inv)
		} else {
			_ = s.Heartbeat(&hearthv1.Heartbeat{Pools: inv.GetPools(), Room: inv.GetRoom()})
		}
		time.Sleep(time.Second)
	}
}

// modelClient is a node as one controller reaches it.
type modelClient struct {
	hearthv1connect.NodeServiceClient
	l *life
	n *modelNode
}

// do carries out act, unless the controller is dead or the request is lost, and
// may lose the answer.
func (c *modelClient) do(what any, act func() error) error {
	c.l.pause(20 * time.Millisecond)
	if c.l.isDead() {
		return errDead
	}
	if c.l.chance(4) {
		return fmt.Errorf("%w: connection reset", env.ErrUnavailable)
	}
	c.n.mu.Lock()
	err := act()
	c.n.mu.Unlock()
	c.l.trace("node %s: %s: %v", c.n.name, what, err)
	c.l.pause(20 * time.Millisecond)
	if c.l.chance(4) {
		return fmt.Errorf("%w: connection reset", env.ErrUnavailable)
	}
	return err
}

func (n *modelNode) claim(r *hearthv1.NodeClaimRequest, class, tenant string, ephemeral bool) (*hearthv1.NodeClaimResponse, error) {
	id, key := r.GetEnvironment(), r.GetIdempotencyKey()
	if _, again := n.keys[key]; !again {
		if n.envs[id] != nil {
			return nil, fmt.Errorf("%w: %s runs", env.ErrExists, id)
		}
		n.keys[key] = id
		n.envs[id] = &hearthv1.Environment{Id: id, Class: class, Tenant: tenant, Generation: r.GetGeneration(), Phase: hearthv1.Phase_PHASE_RUNNING,
			Ephemeral: ephemeral, ClaimKey: r.GetClaimKey(), ClaimRequest: r.GetClaimRequest()}
	}
	e := n.envs[id]
	if e == nil {
		return nil, fmt.Errorf("%w: %s was released", env.ErrState, id)
	}
	return &hearthv1.NodeClaimResponse{Environment: proto.CloneOf(e), Access: &hearthv1.Access{Token: key}}, nil
}

func (c *modelClient) Claim(_ context.Context, r *hearthv1.NodeClaimRequest) (resp *hearthv1.NodeClaimResponse, err error) {
	err = c.do(r, func() error {
		if _, again := c.n.keys[r.GetIdempotencyKey()]; !again && c.l.chance(4) {
			return fmt.Errorf("%w: no slot", env.ErrExhausted)
		}
		resp, err = c.n.claim(r, r.GetSpec().GetClass(), r.GetSpec().GetTenant(), r.GetSpec().GetClass() == "brief")
		return err
	})
	return resp, err
}

func (c *modelClient) Fork(_ context.Context, r *hearthv1.NodeForkRequest) (resp *hearthv1.NodeForkResponse, err error) {
	err = c.do(r, func() error {
		if resp = c.n.forks[r.GetIdempotencyKey()]; resp != nil {
			return nil
		}
		p := c.n.envs[r.GetEnvironment()]
		if p == nil {
			return fmt.Errorf("%w: %s", env.ErrNotFound, r.GetEnvironment())
		}
		resp = &hearthv1.NodeForkResponse{}
		for i, child := range r.GetChildren() {
			got, err := c.n.claim(child, p.GetClass(), p.GetTenant(), p.GetEphemeral())
			if err == nil && i > 0 && c.l.chance(10) {
				err = fmt.Errorf("%w: no slot for the next child", env.ErrExhausted)
			}
			if err != nil {
				for _, child := range r.GetChildren()[:i+1] {
					delete(c.n.envs, child.GetEnvironment()) // all or none
				}
				return err
			}
			resp.Children = append(resp.Children, got)
		}
		c.n.forks[r.GetIdempotencyKey()] = resp
		return nil
	})
	return resp, err
}

func (c *modelClient) Get(_ context.Context, r *hearthv1.NodeGetRequest) (resp *hearthv1.NodeGetResponse, err error) {
	err = c.do(r, func() error {
		e := c.n.envs[r.GetEnvironment()]
		if e == nil {
			return fmt.Errorf("%w: %s", env.ErrNotFound, r.GetEnvironment())
		}
		resp = &hearthv1.NodeGetResponse{Environment: proto.CloneOf(e)}
		return nil
	})
	return resp, err
}

func (c *modelClient) Token(_ context.Context, r *hearthv1.NodeTokenRequest) (*hearthv1.NodeTokenResponse, error) {
	return &hearthv1.NodeTokenResponse{Access: &hearthv1.Access{}}, c.do(r, func() error {
		if c.n.envs[r.GetEnvironment()] == nil {
			return fmt.Errorf("%w: %s", env.ErrNotFound, r.GetEnvironment())
		}
		return nil
	})
}

func (c *modelClient) Release(_ context.Context, r *hearthv1.NodeReleaseRequest) (*hearthv1.NodeReleaseResponse, error) {
	return &hearthv1.NodeReleaseResponse{}, c.do(r, func() error {
		e := c.n.envs[r.GetEnvironment()]
		switch {
		case e == nil:
			return fmt.Errorf("%w: %s", env.ErrNotFound, r.GetEnvironment())
		case e.GetGeneration() > r.GetGeneration():
			return fmt.Errorf("%w: generation %d", env.ErrFenced, e.GetGeneration())
		}
		delete(c.n.envs, r.GetEnvironment())
		return nil
	})
}

package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// newRelease makes another release of the class.
func (f *fake) newRelease(revision, image string) {
	f.revision, f.image = revision, image
	for _, e := range f.envs {
		e.Outdated = e.Revision != revision
	}
}

func (f *fake) Upgrade(_ context.Context, r *hearthv1.UpgradeRequest) (*hearthv1.UpgradeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err := f.find(r.GetEnvironment())
	switch {
	case err != nil:
		return nil, err
	case !e.Outdated:
		return nil, fmt.Errorf("%w: it is of the newest release of class base already (%s)", env.ErrState, e.Revision)
	case e.image != f.image && r.GetKeep() != hearthv1.Keep_KEEP_WORKSPACE:
		return nil, fmt.Errorf("%w: it lies on image %s, the newest release has %s", env.ErrInvalid, e.image, f.image)
	}
	e.Revision, e.image, e.Outdated = f.revision, f.image, false
	e.snapshots++
	return &hearthv1.UpgradeResponse{Environment: proto.CloneOf(e.Environment), Snapshot: f.snap(e, e.snapshots)}, nil
}

func (n *fakeNode) Upgrade(ctx context.Context, r *hearthv1.NodeUpgradeRequest) (*hearthv1.NodeUpgradeResponse, error) {
	s, err := n.fake.Upgrade(ctx, &hearthv1.UpgradeRequest{Environment: r.GetEnvironment(), Keep: r.GetKeep()})
	return &hearthv1.NodeUpgradeResponse{Environment: s.GetEnvironment(), Snapshot: s.GetSnapshot()}, err
}

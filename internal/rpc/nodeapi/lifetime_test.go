package nodeapi

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/warm"
)

func TestExtensionsAreReadAndNonsenseIsRefused(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	hour := time.Hour
	zero := time.Duration(0)
	for name, tc := range map[string]struct {
		req  *hearthv1.NodeExtendRequest
		want warm.Extension
		bad  bool
	}{
		"nothing":             {req: &hearthv1.NodeExtendRequest{}, bad: true},
		"by an hour":          {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(hour)}}, want: warm.Extension{By: hour}},
		"by no time":          {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(0)}}, bad: true},
		"by a missing time":   {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_Duration{}}, bad: true},
		"backwards":           {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_Duration{Duration: durationpb.New(-hour)}}, bad: true},
		"by an invalid time":  {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_Duration{Duration: &durationpb.Duration{Seconds: 1, Nanos: -1}}}, bad: true},
		"until":               {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_ExpiresAt{ExpiresAt: timestamppb.New(at)}}, want: warm.Extension{Until: at}},
		"until nonsense":      {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_ExpiresAt{ExpiresAt: &timestamppb.Timestamp{Nanos: -1}}}, bad: true},
		"from the claim":      {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_TimeToLive{TimeToLive: durationpb.New(hour)}}, want: warm.Extension{FromClaim: &hour}},
		"as the class says":   {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_TimeToLive{TimeToLive: durationpb.New(0)}}, want: warm.Extension{FromClaim: &zero}},
		"before it was there": {req: &hearthv1.NodeExtendRequest{End: &hearthv1.NodeExtendRequest_TimeToLive{TimeToLive: durationpb.New(-hour)}}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := extensionOf(tc.req)
			if tc.bad {
				if !errors.Is(err, env.ErrInvalid) {
					t.Errorf("%+v, %v, want ErrInvalid", got, err)
				}
				return
			}
			if d := cmp.Diff(tc.want, got); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

func TestALifetimeTravelsAsItIs(t *testing.T) {
	left := 90 * time.Minute
	for _, l := range []*warm.Lifetime{nil, {Lived: time.Hour}, {Lived: time.Hour, Left: &left, TimeToLive: 2 * time.Hour}} {
		if d := cmp.Diff(l, lifetimeOf(lifetimeProto(l))); d != "" {
			t.Error(d)
		}
	}
	// What cannot be is made the nearest that can.
	got := lifetimeOf(&hearthv1.Lifetime{Lived: durationpb.New(-time.Hour), Left: durationpb.New(-time.Hour)})
	if got.Lived != 0 || *got.Left != 0 {
		t.Errorf("lifetime = %+v", got)
	}
}

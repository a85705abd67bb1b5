package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
)

func (d *debugger) claimProfileCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "claim-profile",
		Short: "Show where the newest warm claims spent their time",
		Long: `Show where the newest 1,000 warm claims spent their time on this node, phase by
phase in the order of the claim path, in milliseconds. A phase that few claims
have, such as limits, counts those only. docs/performance.md says what the phases
are; hearth_claim_phase_seconds has the same for Prometheus.`,
		Example: "  nodeagent debug claim-profile\n  nodeagent debug claim-profile -o json",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return d.ask(cmd.Context(), func(ctx context.Context, c hearthv1connect.NodeServiceClient) error {
				r, err := c.ClaimProfile(ctx, &hearthv1.ClaimProfileRequest{})
				if err != nil {
					return fmt.Errorf("read claim profile: %w", err)
				}
				if d.json {
					return d.message(r)
				}
				var rows [][]string
				for _, p := range r.GetPhases() {
					rows = append(rows, []string{
						p.GetName(), fmt.Sprint(p.GetClaims()), millis(p.GetP50()), millis(p.GetP90()), millis(p.GetP99()), millis(p.GetMax()),
					})
				}
				return d.table([]string{"PHASE", "CLAIMS", "P50", "P90", "P99", "MAX"}, rows)
			})
		},
	}
}

func millis(t *durationpb.Duration) string {
	return fmt.Sprintf("%.3f", t.AsDuration().Seconds()*1000)
}

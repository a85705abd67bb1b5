package main

import (
	"context"
	"errors"
	"time"
)

// republish is how often what the cluster is told is compared, retry after how long
// that is tried again.
const republish, retry = 5 * time.Minute, 10 * time.Second

func (c *inCluster) renew(ctx context.Context) error {
	return every(ctx, time.Hour, func(now time.Time) { renewIfDue(c.log, c.ca, c.source, c.cfg, now) })
}

func every(ctx context.Context, d time.Duration, f func(time.Time)) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			f(now)
		}
	}
}

// publish tells the cluster the authority's certificate, now and whenever somebody
// has changed what it was told.
func (c *inCluster) publish(ctx context.Context) error {
	for {
		next := republish
		err := errors.Join(
			c.client.PublishCA(ctx, c.ca.PEM(), c.k.Namespace, c.k.AgentNamespace),
			c.client.TrustWebhook(ctx, c.k.Webhook.Configuration, c.ca.PEM()),
		)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("certificate authority not published", "error", err)
			next = retry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next):
		}
	}
}

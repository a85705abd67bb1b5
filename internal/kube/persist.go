package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// minAgain and maxAgain bound the pause between two tries to reach the API server.
	minAgain = 100 * time.Millisecond
	maxAgain = 2 * time.Second
)

// persistent makes a ListWatch wait for an API server that does not work instead of
// telling its reflector, which would back off for up to a minute: for that long after
// an outage claims would go to nodes that were cordoned meanwhile. What the server
// itself answers, such as that a version is gone, is told.
func persistent(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return untilReached(ctx, func() (runtime.Object, error) { return lw.ListWithContext(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return untilReached(ctx, func() (watch.Interface, error) { return lw.WatchWithContext(ctx, o) })
		},
		DisableChunking: lw.DisableChunking,
	}
}

// untilReached repeats try until the API server works, or ctx ends.
func untilReached[T any](ctx context.Context, try func() (T, error)) (T, error) {
	begun := time.Now()
	for pause := minAgain; ; pause = min(2*pause, maxAgain) {
		got, err := try()
		if err == nil || answered(err) || ctx.Err() != nil {
			if pause > minAgain && err == nil {
				klog.FromContext(ctx).Info("the API server is reached again", "after", time.Since(begun))
			}
			return got, err
		}
		if pause == minAgain {
			klog.FromContext(ctx).Info("Warning: the API server is not reached, trying until it is", "err", err)
		}
		select {
		case <-ctx.Done():
			return got, ctx.Err()
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// answered tells whether an error is the verdict of an API server that works.
func answered(err error) bool {
	if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
		return false
	}
	return !apierrors.IsServiceUnavailable(err) && !apierrors.IsInternalError(err) && !apierrors.IsTooManyRequests(err) &&
		!apierrors.IsServerTimeout(err) && !apierrors.IsTimeout(err)
}

package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hearth/internal/env"
)

// What the API server says of the pod that a token was made for
// (k8s.io/apiserver/pkg/authentication/serviceaccount).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

const reviewTimeout = 10 * time.Second

// Reviewer says for which node an agent's token was made. It asks the API server
// each time: that one knows whether the pod still exists. What the cluster has
// not signed for an agent is refused before, so that a stranger who tries tokens
// makes no work for the API server.
type Reviewer struct {
	api    kubernetes.Interface
	tokens *Tokens
	agent  env.ServiceAccount
}

// NewReviewer makes a reviewer of the tokens of the agents' service account; its
// UID is not compared.
func NewReviewer(api kubernetes.Interface, tokens *Tokens, agent env.ServiceAccount) *Reviewer {
	return &Reviewer{api: api, tokens: tokens, agent: agent}
}

// Review returns the name of the node on which the pod runs that the token was
// made for. A token that is not of an agent's pod is env.ErrDenied, with what is
// wrong about it.
func (r *Reviewer) Review(ctx context.Context, token string) (node string, err error) {
	who, err := r.tokens.verify(ctx, token)
	if err != nil {
		return "", err
	}
	if who.Username() != r.agent.Username() {
		return "", notAnAgent(who.Username(), r.agent)
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	answer, err := r.api.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		// Whatever it is, it says nothing of the token.
		return "", fmt.Errorf("%w: review the agent's token: %s; the controller needs create on tokenreviews, and the agent tries again", env.ErrUnavailable, err)
	}
	return nodeOf(answer.Status, r.agent)
}

func notAnAgent(username string, agent env.ServiceAccount) error {
	return fmt.Errorf("%w: the agent's token is of %.128q, not of %s", env.ErrDenied, username, agent.Username())
}

// nodeOf judges the API server's answer.
func nodeOf(s authenticationv1.TokenReviewStatus, agent env.ServiceAccount) (string, error) {
	deny := func(format string, args ...any) (string, error) {
		return "", fmt.Errorf("%w: the agent's token "+format, append([]any{env.ErrDenied}, args...)...)
	}
	switch {
	case !s.Authenticated:
		why := s.Error
		if why == "" {
			why = "no reason given; it may have ended, be of another cluster or of a pod that is gone"
		}
		return deny("is not accepted by the API server: %.256s", why)
	case !slices.Contains(s.Audiences, Audience):
		return deny("is for %.128q; it must be projected with audience %q", s.Audiences, Audience)
	case s.User.Username != agent.Username():
		return "", notAnAgent(s.User.Username, agent)
	}
	_, named := only(s, extraPodName)
	_, identified := only(s, extraPodUID)
	if !named || !identified {
		return deny("is bound to no pod; use the one that is projected into the agent's pod")
	}
	node, ok := only(s, extraNodeName)
	if !ok {
		return deny("does not say on which node its pod runs: Kubernetes 1.32 or later is needed")
	}
	return node, nil
}

// only is the single value of what the API server says of the user.
func only(s authenticationv1.TokenReviewStatus, key string) (string, bool) {
	v := s.User.Extra[key]
	if len(v) != 1 || v[0] == "" {
		return "", false
	}
	return v[0], true
}

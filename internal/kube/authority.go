package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"hearth/internal/env"
)

// authorityName is that of the Secret with the authority's key and certificate,
// and of the ConfigMaps with the certificate.
const authorityName = "hearth-ca"

// Authority keeps the certificate authority in a Secret, as if it were a
// directory. The Secret's keys are the files' names.
type Authority struct {
	s secret
}

// NewAuthority keeps it in namespace.
func (c *Client) NewAuthority(namespace string) *Authority {
	return &Authority{secret{c: c, namespace: namespace, name: authorityName}}
}

// Path names the Secret for messages.
func (a *Authority) Path() string { return "secret " + a.s.namespace + "/" + a.s.name }

// ReadFile reads one key; env.ErrNotFound if it is not there.
func (a *Authority) ReadFile(name string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	o, err := a.s.read(ctx)
	if err != nil {
		return nil, err
	}
	b, ok := o.Data[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: %s has no %s", env.ErrNotFound, a.Path(), name)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%w: %s: %s has %d bytes, at most %d", env.ErrCorrupt, a.Path(), name, len(b), limit)
	}
	return b, nil
}

// WriteNew writes one key; env.ErrExists if it is there.
func (a *Authority) WriteNew(_, name string, data []byte, _ fs.FileMode) error {
	return a.s.update(func(have map[string][]byte) error {
		if _, ok := have[name]; ok {
			return fmt.Errorf("%w: %s", env.ErrExists, name)
		}
		have[name] = data
		return nil
	})
}

// caKey is the key of the certificate in the ConfigMaps.
const caKey = "ca.crt"

// PublishCA writes the authority's certificate into a ConfigMap in each of the
// namespaces, where callers mount it from.
func (c *Client) PublishCA(ctx context.Context, pem []byte, namespaces ...string) error {
	for _, ns := range namespaces {
		if err := c.publishCA(ctx, pem, ns); err != nil {
			return failed(fmt.Sprintf("publish configmap %s/%s", ns, authorityName), err)
		}
	}
	return nil
}

func (c *Client) publishCA(ctx context.Context, pem []byte, namespace string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	maps := c.core.CoreV1().ConfigMaps(namespace)
	body, err := json.Marshal(map[string]any{"data": map[string]string{caKey: string(pem)}})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, authorityName, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager})
	if isNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: authorityName, Namespace: namespace, Labels: map[string]string{partOf: "hearth"}},
			Data:       map[string]string{caKey: string(pem)},
		}, metav1.CreateOptions{FieldManager: fieldManager})
	}
	return err
}

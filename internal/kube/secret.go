package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"hearth/internal/env"
	"hearth/internal/fleet"
)

// secret is one Secret whose every change is made to the state that was read: of
// two writers the later one begins again.
type secret struct {
	c               *Client
	namespace, name string
}

// The keys of the Secret with the desired state that is in no Environment.
const (
	epochKey   = "epoch"
	apiKeysKey = "apikeys" // a list of fleet.EncodeAPIKey
)

// read is nil data if there is no Secret.
func (s secret) read(ctx context.Context) (*corev1.Secret, error) {
	o, err := s.c.core.CoreV1().Secrets(s.namespace).Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: s.name, Namespace: s.namespace, Labels: map[string]string{partOf: "hearth"}}}, nil
	}
	if err != nil {
		return nil, failed(fmt.Sprintf("read secret %s/%s", s.namespace, s.name), err)
	}
	return o, nil
}

// update reads, edits and writes until nobody has written in between.
func (s secret) update(edit func(data map[string][]byte) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	for {
		o, err := s.read(ctx)
		if err != nil {
			return err
		}
		before := maps.Clone(o.Data)
		if o.Data == nil {
			o.Data = map[string][]byte{}
		}
		if err := edit(o.Data); err != nil {
			return fmt.Errorf("secret %s/%s: %w", s.namespace, s.name, err)
		}
		if o.ResourceVersion != "" && maps.EqualFunc(before, o.Data, slices.Equal[[]byte]) {
			return nil
		}
		secrets := s.c.core.CoreV1().Secrets(s.namespace)
		if o.ResourceVersion == "" {
			_, err = secrets.Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
		} else {
			_, err = secrets.Update(ctx, o, metav1.UpdateOptions{FieldManager: fieldManager})
		}
		if err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			return failed(fmt.Sprintf("write secret %s/%s", s.namespace, s.name), err)
		}
		select {
		case <-ctx.Done():
			return failed(fmt.Sprintf("write secret %s/%s", s.namespace, s.name), ctx.Err())
		case <-time.After(minBackoff/2 + rand.N(minBackoff)):
		}
	}
}

// nextEpoch begins a new Secret with the seconds since 1970, so that agents which
// obeyed a controller whose Secret was lost still see a higher number.
func (s secret) nextEpoch() (uint64, error) {
	var epoch uint64
	err := s.update(func(data map[string][]byte) error {
		text, ok := data[epochKey]
		switch n, err := strconv.ParseUint(string(text), 10, 64); {
		case !ok:
			epoch = uint64(time.Now().Unix())
		case err != nil:
			return fmt.Errorf("%w: %s is %.32q, not a number; delete that key to begin with the present time", env.ErrCorrupt, epochKey, text)
		default:
			epoch = n + 1
		}
		data[epochKey] = strconv.AppendUint(nil, epoch, 10)
		return nil
	})
	return epoch, err
}

func (s secret) apiKeys() ([]fleet.APIKey, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	o, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return decodeAPIKeys(o.Data[apiKeysKey])
}

func (s secret) putAPIKey(k fleet.APIKey) error {
	return s.editAPIKeys(func(keys []fleet.APIKey) []fleet.APIKey {
		return append(slices.DeleteFunc(keys, func(have fleet.APIKey) bool { return have.ID == k.ID }), k)
	})
}

func (s secret) deleteAPIKey(id string) error {
	return s.editAPIKeys(func(keys []fleet.APIKey) []fleet.APIKey {
		return slices.DeleteFunc(keys, func(have fleet.APIKey) bool { return have.ID == id })
	})
}

func (s secret) editAPIKeys(edit func([]fleet.APIKey) []fleet.APIKey) error {
	return s.update(func(data map[string][]byte) error {
		keys, err := decodeAPIKeys(data[apiKeysKey])
		if err != nil {
			return err
		}
		data[apiKeysKey], err = encodeAPIKeys(edit(keys))
		return err
	})
}

func decodeAPIKeys(b []byte) ([]fleet.APIKey, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%w: %s: %s", env.ErrCorrupt, apiKeysKey, err)
	}
	var keys []fleet.APIKey
	var errs []error
	for _, raw := range list {
		k, err := fleet.DecodeAPIKey(raw)
		keys, errs = append(keys, k), append(errs, err)
	}
	return keys, errors.Join(errs...)
}

func encodeAPIKeys(keys []fleet.APIKey) ([]byte, error) {
	list := []json.RawMessage{}
	for _, k := range keys {
		raw, err := fleet.EncodeAPIKey(k)
		if err != nil {
			return nil, err
		}
		list = append(list, raw)
	}
	return json.Marshal(list)
}

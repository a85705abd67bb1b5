package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"hearth/internal/env"
)

// Bytes is a size. In files it is written as Kubernetes writes it: "512Mi",
// "2Gi", "1000000".
type Bytes int64

// UnmarshalJSON accepts a string or a number.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	q, err := parseQuantity(data)
	if err != nil {
		return err
	}
	if q.Sign() < 0 || q.CmpInt64(1<<62) > 0 {
		return fmt.Errorf("%s is not a size of 0 to 4Ei", q.String())
	}
	*b = Bytes(q.Value())
	return nil
}

// MarshalJSON writes the shortest form.
func (b Bytes) MarshalJSON() ([]byte, error) {
	return resource.NewQuantity(int64(b), resource.BinarySI).MarshalJSON()
}

// Millis is an amount of CPU in thousandths of one. In files it is written as
// Kubernetes writes it: "500m", "2".
type Millis int64

// UnmarshalJSON accepts a string or a number.
func (m *Millis) UnmarshalJSON(data []byte) error {
	q, err := parseQuantity(data)
	if err != nil {
		return err
	}
	if q.Sign() < 0 || q.CmpInt64(1<<40) > 0 {
		return fmt.Errorf("%s is not a number of CPUs", q.String())
	}
	*m = Millis(q.MilliValue())
	return nil
}

// MarshalJSON writes the shortest form.
func (m Millis) MarshalJSON() ([]byte, error) {
	return resource.NewMilliQuantity(int64(m), resource.DecimalSI).MarshalJSON()
}

func parseQuantity(data []byte) (resource.Quantity, error) {
	text := string(bytes.Trim(data, `"`))
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return q, fmt.Errorf(`%.64q is not a quantity such as "500m", "2" or "512Mi"`, text)
	}
	return q, nil
}

// Share is an amount, "8Gi" or "1500m", or a part of what there is, "50%".
type Share string

// UnmarshalJSON accepts a quantity, which may be 0, or a percentage of 1 to 100.
func (s *Share) UnmarshalJSON(data []byte) error {
	text := string(bytes.Trim(data, `"`))
	if part, ok := strings.CutSuffix(text, "%"); ok {
		if n, err := strconv.Atoi(part); err != nil || n < 1 || n > 100 {
			return fmt.Errorf("%.64q is not a percentage of 1%% to 100%%", text)
		}
	} else if q, err := parseQuantity(data); err != nil || q.Sign() < 0 {
		return fmt.Errorf(`%.64q is neither an amount such as "8Gi" or "1500m" nor a percentage such as "50%%"`, text)
	}
	*s = Share(text)
	return nil
}

// Of is the share of a whole.
func (s Share) Of(whole resource.Quantity) (resource.Quantity, error) {
	part, ok := strings.CutSuffix(string(s), "%")
	if !ok {
		return resource.ParseQuantity(string(s))
	}
	n, err := strconv.ParseInt(part, 10, 64)
	if err != nil {
		return resource.Quantity{}, fmt.Errorf("%w: share %.64q", env.ErrInvalid, string(s))
	}
	if whole.Format == resource.BinarySI { // bytes, in whole mebibytes
		return *resource.NewQuantity((whole.Value()/100*n+whole.Value()%100*n/100)/mib*mib, resource.BinarySI), nil
	}
	return *resource.NewMilliQuantity(whole.MilliValue()*n/100, resource.DecimalSI), nil
}

// Parts is the share as a percentage, or else as an amount in whole units.
func (s Share) Parts() (percent int, amount uint64, err error) {
	if part, ok := strings.CutSuffix(string(s), "%"); ok {
		percent, err = strconv.Atoi(part)
		return percent, 0, err
	}
	q, err := resource.ParseQuantity(string(s))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: share %.64q", env.ErrInvalid, string(s))
	}
	return 0, uint64(max(q.Value(), 0)), nil
}

// Resolver is the address of a DNS server; the port is 53 where none is
// written.
type Resolver struct{ netip.AddrPort }

// UnmarshalText accepts "192.0.2.53" and "192.0.2.53:5353".
func (r *Resolver) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil {
		r.AddrPort = netip.AddrPortFrom(a, 53)
		return nil
	}
	ap, err := netip.ParseAddrPort(string(text))
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("%.64q is not an address, with or without a port", text)
	}
	r.AddrPort = ap
	return nil
}

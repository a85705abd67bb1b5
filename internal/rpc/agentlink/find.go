package agentlink

import "context"

// Finder says where the controller is now. It is asked whenever there is no
// connection; an answer may be stale, and is then asked for again.
type Finder interface {
	// Find returns host:port, and the authority by which to verify the
	// controller; nil leaves that to the join token.
	Find(ctx context.Context) (address string, caPEM []byte, err error)
}

// Static is a controller at one address, whose authority the join token names.
type Static string

// Find implements Finder.
func (s Static) Find(context.Context) (string, []byte, error) { return string(s), nil, nil }

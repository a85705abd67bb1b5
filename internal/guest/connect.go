package guest

import (
	"context"
	"fmt"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// Connect opens a connection to 127.0.0.1:port inside. The context covers the
// opening only; the caller closes the connection. Its bytes are raw: no frame
// follows the reply, so back-pressure and half-closing are the kernel's.
func (c *Client) Connect(ctx context.Context, port uint16) (Conn, error) {
	if port == 0 {
		return nil, fmt.Errorf("%w: connect: port 0 is not a port", env.ErrInvalid)
	}
	cl, err := c.open(ctx, wire.Request{Op: wire.OpConnect, Connect: &wire.Connect{Port: port}}, openTimeout)
	if err != nil {
		return nil, err
	}
	var reply wire.Reply
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		cl.close()
		return nil, err
	}
	if !cl.release() {
		return nil, cl.fault(context.Cause(ctx))
	}
	return cl.conn, nil
}

// Command peer runs inside an environment and tries to give envinit an order.
package main

import (
	"fmt"
	"net"
	"os"

	"hearth/internal/guest/wire"
)

func main() {
	conn, err := net.Dial("unix", wire.SocketName)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_ = wire.NewWriter(conn).SendJSON(wire.KindRequest, wire.Request{Version: 1, Least: 1, Op: wire.OpStatus})
	f, err := wire.NewReader(conn).Next()
	fmt.Printf("kind %d: %s %v\n", f.Kind, f.Payload, err)
	if err != nil || f.Kind != wire.KindError {
		os.Exit(1)
	}
}

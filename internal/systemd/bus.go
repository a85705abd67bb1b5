package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"hearth/internal/env"
)

// endTimeout is what environments get to end by themselves when the scope is
// stopped, as it is when the node shuts down. Frozen ones never do.
const endTimeout = 10 * time.Second

// socket is one way to systemd.
type socket struct {
	path  string
	hello bool // a bus, which greets; systemd itself does not
}

// sockets are tried in order. A pod has the first alone.
var sockets = []socket{{"/run/dbus/system_bus_socket", true}, {"/run/systemd/private", false}}

// dial connects systemd. The connection ends with ctx.
func dial(ctx context.Context) (bus, error) { return dialFirst(ctx, sockets) }

func dialFirst(ctx context.Context, sockets []socket) (bus, error) {
	var errs []error
	for _, s := range sockets {
		if !exists(s.path) {
			errs = append(errs, fmt.Errorf("no %s", s.path))
			continue
		}
		conn, err := sdbus.NewConnection(func() (*dbus.Conn, error) { return connect(ctx, s) })
		if err == nil {
			return &connection{conn}, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.path, err))
	}
	return nil, fmt.Errorf("%w: systemd does not answer (%w); start dbus.service, give an agent in a pod the node's /run/dbus, or set cgroup.root", env.ErrUnavailable, errors.Join(errs...))
}

func connect(ctx context.Context, s socket) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path="+s.path, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err == nil && s.hello {
		err = conn.Hello()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// connection is systemd's Manager on one connection.
type connection struct{ conn *sdbus.Conn }

func (c *connection) close() { c.conn.Close() }

func (c *connection) unit(ctx context.Context, name string) (unit, error) {
	props, err := c.conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return unit{}, fmt.Errorf("read unit: %w", err)
	}
	var u unit
	u.active, _ = props["ActiveState"].(string)
	u.delegated, _ = props["Delegate"].(bool) // not there if the unit is not
	u.description, _ = props["Description"].(string)
	u.cgroup, _ = props["ControlGroup"].(string)
	if u.active == "" {
		return unit{}, fmt.Errorf("%w: read unit: systemd tells no ActiveState", env.ErrUnavailable)
	}
	return u, nil
}

func (c *connection) start(ctx context.Context, name string, pid int) error {
	job := func(done chan<- string) error {
		// "fail": never instead of a job that is queued, as at shutdown.
		_, err := c.conn.StartTransientUnitContext(ctx, name, "fail", properties(name, pid), done)
		return err
	}
	err := await(ctx, job)
	if isUnitExists(err) { // one that failed, and that nobody has collected
		_ = c.conn.ResetFailedUnitContext(ctx, name)
		err = await(ctx, job)
	}
	if err != nil {
		return fmt.Errorf("start unit: %w", err)
	}
	return nil
}

func (c *connection) stop(ctx context.Context, name string) error {
	err := await(ctx, func(done chan<- string) error {
		_, err := c.conn.StopUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil && !isNoSuchUnit(err) {
		return fmt.Errorf("stop unit: %w", err)
	}
	return nil
}

// await waits for the end of a job.
func await(ctx context.Context, begin func(done chan<- string) error) error {
	done := make(chan string, 1)
	if err := begin(done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%w: the job ended as %q", env.ErrUnavailable, result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *connection) setWeight(ctx context.Context, name string, weight uint64) error {
	return c.conn.SetUnitPropertiesContext(ctx, name, true, property("CPUWeight", weight))
}

func (c *connection) version() (string, error) {
	quoted, err := c.conn.GetManagerProperty("Version") // as a GVariant: "252.5-2"
	if err != nil {
		return "", fmt.Errorf("%w: read systemd's version: %w", env.ErrUnavailable, err)
	}
	return strings.Trim(quoted, `"`), nil
}

// properties are those of a new scope of one process. Delegate also keeps
// systemd from ending the whole scope when one environment meets its memory
// limit (OOMPolicy=, which is "continue" for delegated units).
func properties(name string, pid int) []sdbus.Property {
	return []sdbus.Property{
		sdbus.PropDescription(description(name)),
		// Beside kubepods.slice and system.slice, not within what the latter may use.
		sdbus.PropSlice("-.slice"),
		sdbus.PropPids(uint32(pid)),
		property("Delegate", true),
		property("TasksMax", uint64(math.MaxUint64)), // the default is a part of the node's
		property("TimeoutStopUSec", uint64(endTimeout.Microseconds())),
		property("CollectMode", "inactive-or-failed"),
	}
}

func property(name string, value any) sdbus.Property {
	return sdbus.Property{Name: name, Value: dbus.MakeVariant(value)}
}

func isUnitExists(err error) bool { return isNamed(err, "org.freedesktop.systemd1.UnitExists") }
func isNoSuchUnit(err error) bool { return isNamed(err, "org.freedesktop.systemd1.NoSuchUnit") }

func isNamed(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}

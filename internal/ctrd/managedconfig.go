package ctrd

import (
	"fmt"
	"path/filepath"
)

// managedConfig keeps what slots need: overlay, runc tasks, images, transfer.
func managedConfig(c Config) string {
	return fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.grpc.v1.sandbox-controllers",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
  "io.containerd.monitor.container.v1.restart",
  "io.containerd.http.v1.pprof",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
  address = %q
  uid = 0
  gid = 0

[ttrpc]
  address = %q

[debug]
  level = "warn"
`, c.Root, c.State, c.Address, c.Address+".ttrpc") + shimSockets(c)
}

// maxShimDir is the longest directory that containerd takes for shim sockets
// (core/runtime/v2/socket_linux.go).
const maxShimDir = 42

// shimSockets keeps the shims' sockets below State, if that is short enough: a
// shim that is killed leaves its own behind, and StopManaged can then remove it.
func shimSockets(c Config) string {
	dir := filepath.Join(c.State, shimDir)
	if len(dir) > maxShimDir {
		return ""
	}
	return fmt.Sprintf(`
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
`, dir)
}

// Package stage is where the demo and the benchmarks play: network and mount
// namespaces of their own with no route out, "the internet" behind a veth pair,
// a controller, an agent with its own containerd, and clients of all of them.
// A holder process keeps the namespaces, so that pinned programs and running
// environments survive a restart of the agent.
package stage

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Stage is one such place. Make it with New; its processes write their pids
// below its directory, so that another process can tear it down.
type Stage struct {
	// Hearthctl and Node are set by StartDaemons.
	Hearthctl Hearthctl
	Node      NodeClient
	// WarmSlots is how many ready slots the class keeps, MaxSlots how many of any
	// kind the node may have, SlotMemory what each may use.
	WarmSlots, MaxSlots int
	SlotMemory          string
	// Agent is the nodeagent that StartAgent starts; "" is this tree's.
	Agent string

	dir        string
	instance   string
	runtimeDir string // containerd, runc, ctr
	programs   string // nodeagent, controller, hearthctl, envinit
	image      string // OCI archive
	probe      string // a static program to copy into environments
	mounts     string // the node's mount namespace, after SetUp
	holder     string // a program with the roles "hold" and "internet"
}

// New names a stage of the instance by the environment variables that the
// Makefile sets. It makes nothing.
func New(instance, dir string) *Stage {
	return &Stage{
		WarmSlots: 2, MaxSlots: 32, SlotMemory: "256Mi", instance: instance, dir: envPath("HEARTH_STAGE_DIR", dir),
		runtimeDir: envPath("HEARTH_RUNTIME_DIR", ".bin"), programs: envPath("HEARTH_BIN_DIR", "bin"),
		image: envPath("HEARTH_IMAGE", ".image/busybox.tar"),
		probe: envPath("HEARTH_PROBE", ".bin/probe"), holder: envPath("HEARTH_HOLDER", ".bin/demo"),
	}
}

// envPath is a path from the environment, made absolute there too: processes
// inside the namespaces start in another directory.
func envPath(name, otherwise string) string {
	v := os.Getenv(name)
	if v == "" {
		v = otherwise
	}
	abs, err := filepath.Abs(v)
	must(err)
	must(os.Setenv(name, abs))
	return abs
}

// must ends the program on what can only be a mistake of this package or a
// broken machine.
func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stage:", err)
		os.Exit(1)
	}
}

// Dir is the stage's directory.
func (s *Stage) Dir() string { return s.dir }

// Probe is the static program's path on the host.
func (s *Stage) Probe() string { return s.probe }

func (s *Stage) runDir() string          { return filepath.Join("/run", s.instance) }
func (s *Stage) Path(name string) string { return filepath.Join(s.dir, name) }
func (s *Stage) socket() string          { return filepath.Join(s.runDir(), "node.sock") }
func (s *Stage) Program(n string) string { return filepath.Join(s.programs, n) }
func (s *Stage) pidFile(n string) string { return s.Path(n + ".pid") }

// Addresses of the stage. Nothing leaves the namespaces, so the internet's
// host may carry any public address.
const (
	UplinkNode      = "198.51.100.1" // of the node on its uplink
	uplinkInternet  = "198.51.100.2"
	PublicAddress   = "93.184.216.34"
	MetadataAddress = "169.254.169.254"
	ProbePort       = "7777"
)

var internetAddresses = []string{PublicAddress, MetadataAddress}

// SetUp makes the namespaces and the network between them.
func (s *Stage) SetUp() error {
	if os.Geteuid() != 0 {
		return errors.New("containers and network namespaces need root")
	}
	if _, err := os.Stat(s.dir); err == nil {
		return fmt.Errorf("%s exists: an earlier run still lives or died; end it with `make demo-stop`", s.dir)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	node, err := s.startHolder("node", nil)
	if err != nil {
		return err
	}
	if s.mounts, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", node)); err != nil {
		return err
	}
	// The internet shares the node's mounts but not its network.
	net, err := s.startHolder("internet", []string{"nsenter", "-t", strconv.Itoa(node), "-m", "-n", "--", "unshare", "-n"})
	if err != nil {
		return err
	}
	in := func(pid int, args ...string) error {
		return run(append([]string{"nsenter", "-t", strconv.Itoa(pid), "-n", "--"}, args...)...)
	}
	for _, cmd := range []struct {
		pid  int
		line string
	}{
		{node, "ip link add up0 type veth peer name up1 netns " + strconv.Itoa(net)},
		{node, "ip addr add " + UplinkNode + "/30 dev up0"},
		{node, "ip link set up0 up"},
		{node, "ip route add default via " + uplinkInternet},
		{net, "ip link set lo up"},
		{net, "ip addr add " + uplinkInternet + "/30 dev up1"},
		{net, "ip link set up1 up"},
	} {
		if err := in(cmd.pid, strings.Fields(cmd.line)...); err != nil {
			return err
		}
	}
	for _, a := range internetAddresses {
		if err := s.AddInternetAddress(a); err != nil {
			return err
		}
	}
	if err := s.StartServer("internet-server", "internet", withPort(internetAddresses)...); err != nil {
		return err
	}
	return s.StartServer("node-server", "node", withPort([]string{UplinkNode})...)
}

// AddInternetAddress gives the internet's host one more address.
func (s *Stage) AddInternetAddress(addr string) error {
	pid, err := s.PID("internet")
	if err != nil {
		return err
	}
	return run("nsenter", "-t", strconv.Itoa(pid), "-n", "--", "ip", "addr", "add", addr+"/32", "dev", "lo")
}

func withPort(addrs []string) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a + ":" + ProbePort
	}
	return out
}

// startHolder starts this program as the keeper of new namespaces, waits until
// they are made, and writes its pid down.
func (s *Stage) startHolder(role string, prefix []string) (int, error) {
	name := map[string]string{"node": "hold", "internet": "internet"}[role]
	cmd := exec.Command(s.holder, name)
	if prefix != nil {
		cmd = exec.Command(prefix[0], append(prefix[1:], s.holder, name)...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if prefix == nil {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	}
	log, err := os.Create(s.Path(role + ".log"))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start holder of the %s: %w", role, err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return 0, fmt.Errorf("holder of the %s: see %s: %w", role, log.Name(), err)
	}
	pid := cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // reap it whenever it ends
	return pid, os.WriteFile(s.pidFile(role), []byte(strconv.Itoa(pid)), 0o600)
}

// Internet keeps the internet's network namespace until SIGTERM.
func Internet() error { return stay() }

// StartServer runs a probe that answers on the addresses, in the network
// namespace of a holder, and writes its pid down.
func (s *Stage) StartServer(name, holder string, addrs ...string) error {
	pid, err := s.PID(holder)
	if err != nil {
		return err
	}
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-n", "--", s.probe, "serve"}, addrs...)...)
	return s.startLogged(name, cmd)
}

// startLogged starts a process that outlives this one, with its output in a
// log, and writes its pid down.
func (s *Stage) startLogged(name string, cmd *exec.Cmd) error {
	log, err := os.OpenFile(s.Path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // reap it whenever it ends
	return os.WriteFile(s.pidFile(name), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

// Hold keeps the node's network and mount namespaces until SIGTERM.
func Hold() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"bpf", "/sys/fs/bpf", "bpf", 0},
		{"tracefs", "/sys/kernel/tracing", "tracefs", 0},
	} {
		// Busy is what it says where the init has mounted the same one there.
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	return stay()
}

// stay says that the namespaces are made, and sleeps.
func stay() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	fmt.Println("holding")
	<-stop
	return nil
}

// inside returns a command that will run in the node's namespaces.
func (s *Stage) Inside(args ...string) *exec.Cmd {
	pid, err := s.PID("node")
	must(err)
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(pid), "-n", "-m", "--"}, args...)...)
}

func (s *Stage) PID(name string) (int, error) {
	b, err := os.ReadFile(s.pidFile(name))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// TearDown ends every process of the demo, removes what they made, and can be
// called at any stage.
func (s *Stage) TearDown() error {
	if _, err := os.Stat(s.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, name := range []string{"agent", "controller"} {
		errs = append(errs, s.end(name))
	}
	if _, err := os.Stat(s.Path("nodeagent.yaml")); err == nil && s.alive("node") {
		out, err := s.Inside(s.Program("nodeagent"), "cleanup", "--all", "--config", s.Path("nodeagent.yaml")).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("cleanup: %w\n%s", err, out))
		}
	}
	for _, name := range []string{"pool-server", "internet-server", "node-server", "internet", "node"} {
		errs = append(errs, s.end(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}

func (s *Stage) alive(name string) bool {
	pid, err := s.PID(name)
	return err == nil && syscall.Kill(pid, 0) == nil
}

// end stops one process that the demo started, by its pid, and waits for it.
func (s *Stage) end(name string) error {
	pid, err := s.PID(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil // never started
	}
	if err != nil {
		return err
	}
	for i := range 300 {
		sig := syscall.SIGTERM
		if i > 250 {
			sig = syscall.SIGKILL
		}
		if i == 0 || i > 250 {
			if err := syscall.Kill(pid, sig); err != nil {
				return os.Remove(s.pidFile(name))
			}
		}
		if gone(pid) {
			return os.Remove(s.pidFile(name))
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("process %d (%s) does not end", pid, name)
}

// gone is true for an ended process, reaped or not.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// OuterInventory is what the machine shows of the stage from outside. Programs
// and maps in the kernel live by the pins in the stage's mount namespace and by
// its processes: with the last process they are gone.
func (s *Stage) OuterInventory() Inventory {
	return Inventory{
		"cgroups": s.cgroupDirs(), "mounts": s.ourMounts(),
		"files":     append(tree(s.dir), tree(s.runDir())...),
		"processes": s.processes(),
	}
}

// processes lists those that see the mounts of this stage, if SetUp made it.
func (s *Stage) processes() (out []string) {
	for _, link := range globs("/proc/[0-9]*/ns/mnt") {
		if ns, err := os.Readlink(link); err == nil && s.mounts != "" && ns == s.mounts {
			out = append(out, link)
		}
	}
	return out
}

func (s *Stage) ShowLogs() {
	for _, name := range []string{"node", "internet", "agent", "controller"} {
		b, err := os.ReadFile(s.Path(name + ".log"))
		if err == nil && len(b) > 0 {
			fmt.Fprintf(os.Stderr, "--- end of %s.log\n%s", name, b[max(0, len(b)-6000):])
		}
	}
}

func run(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Eventually polls until check succeeds or the time is over; then its last
// error counts. On a slow machine the time is longer: see Slow.
func Eventually(most time.Duration, check func() error) error {
	end := time.Now().Add(Slow(most))
	for {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

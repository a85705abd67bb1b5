package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// hoard is a service with a large heap that it does not use until a signal
// comes: then it reads all of it and says how long that took, or that it is not
// what it was.
func hoard() int {
	const size, page = 96 << 20, 4 << 10
	heap, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 8
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	for i := 0; i < size; i += page {
		heap[i], heap[i+1] = byte(i/page), byte(i/page>>8)
	}
	fmt.Println("full")
	for range asked {
		begun, wrong := time.Now(), 0
		for i := 0; i < size; i += page {
			if heap[i] != byte(i/page) || heap[i+1] != byte(i/page>>8) {
				wrong++
			}
		}
		fmt.Println("wrong", wrong, "took", time.Since(begun))
	}
	return 0
}

// swapOf reads the slot's swap: what it uses, and its limit.
func swapOf(t *testing.T, g *Group, below ...string) (current int64, limit string) {
	t.Helper()
	dir := filepath.Join(append([]string{g.tree.roots[0].path + g.tree.root, string(g.slot)}, below...)...)
	text, err := os.ReadFile(dir + "/memory.swap.current")
	if err != nil {
		t.Fatal(err)
	}
	current, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	text, err = os.ReadFile(dir + "/memory.swap.max")
	if err != nil {
		t.Fatal(err)
	}
	return current, strings.TrimSpace(string(text))
}

// Where the node cannot deflate slots, it says what is missing and leaves them as
// they are. Where it can, the memory of a frozen slot goes to swap, and comes back
// when it is used, though nothing more may go.
func TestKernelDeflatedMemoryGoesToSwapAndComesBack(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if err := tree.CanDeflate(); err != nil {
		var missing *env.UnsupportedError
		if !errors.As(err, &missing) || missing.Needs == "" || os.Getenv("HEARTH_VM") != "" {
			t.Fatal(err)
		}
		if _, _, err := g.Deflate(timeout(t, time.Second)); !errors.Is(err, env.ErrUnsupported) {
			t.Errorf("deflate = %v, want what is missing", err)
		}
		if err := g.Inflate(env.Resources{}); err != nil { // of a claim, whatever came before
			t.Errorf("inflate = %v", err)
		}
		t.Logf("this node cannot: %v", err)
		return
	}
	if err := g.SetLimits(env.Resources{MemoryBytes: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	process := start(t, g, "hoard", theirs)
	_ = theirs.Close()
	said := bufio.NewScanner(out)
	if !said.Scan() || said.Text() != "full" {
		t.Fatalf("the process said %q", said.Text())
	}
	if err := g.SetLimits(env.Resources{MemoryBytes: 512 << 20}); err != nil { // now of its container, too
		t.Fatal(err)
	}
	if err := g.Freeze(timeout(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}

	if err := g.Reclaim(64 << 20); err != nil { // as long as its limit is none, nothing goes
		t.Fatal(err)
	}
	if used, limit := swapOf(t, g); used != 0 || limit != "0" {
		t.Fatalf("before it may, %d bytes are in swap, limit %s", used, limit)
	}
	begun := time.Now()
	before, after, err := g.Deflate(timeout(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	used, _ := swapOf(t, g)
	t.Logf("deflated from %d to %d KiB in %s, %d KiB in swap", before>>10, after>>10, time.Since(begun).Round(time.Millisecond), used>>10)
	if before < 96<<20 || after > before/4 || used < 64<<20 {
		t.Errorf("in use %d bytes before, %d after, %d in swap: want three quarters saved", before, after, used)
	}

	begun = time.Now()
	if err := g.Inflate(env.Resources{}); err != nil {
		t.Fatal(err)
	}
	if err := g.Thaw(timeout(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("its claim: swap off and thaw in %s", time.Since(begun))
	for _, below := range [][]string{nil, {containerName}} {
		if _, limit := swapOf(t, g, below...); limit != "0" {
			t.Errorf("swap limit at the claim = %s in %v", limit, below)
		}
	}
	if err := process.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if !said.Scan() || !strings.HasPrefix(said.Text(), "wrong 0 ") {
		t.Errorf("its memory came back as %q", said.Text())
	}
	t.Logf("96 MiB came back: %s", said.Text())
	back, _ := swapOf(t, g)
	if err := g.Reclaim(64 << 20); err != nil {
		t.Fatal(err)
	}
	// Pages that still have their copy in swap may be dropped again; none that
	// was written since may go there.
	if now, _ := swapOf(t, g); now > max(back, used) {
		t.Errorf("%d bytes in swap after the claim, %d before", now, back)
	}
}

func TestKernelDeflateEndsWithItsContext(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if tree.CanDeflate() != nil {
		return // the test above says what is missing
	}
	start(t, g, "sleep", nil)
	ctx := timeout(t, time.Nanosecond)
	<-ctx.Done()
	if _, _, err := g.Deflate(ctx); !errors.Is(err, ctx.Err()) {
		t.Errorf("deflate = %v, want its context's end", err)
	}
	if err := g.Inflate(env.Resources{SwapBytes: 8192}); err != nil {
		t.Fatal(err)
	}
	if _, limit := swapOf(t, g); limit != "8192" {
		t.Errorf("swap limit = %s, want the class's", limit)
	}
}

// What a claim waits for, swap off and thaw, does not wait for what is in swap.
func TestKernelAThawAfterADeflationWaitsForNoSwap(t *testing.T) {
	tree := openTree(t)
	g := createGroup(t, tree)
	if tree.CanDeflate() != nil {
		return // the first test says what is missing
	}
	if err := g.SetLimits(env.Resources{MemoryBytes: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	start(t, g, "sleep", nil)
	const rounds = 20
	took := map[bool][]time.Duration{}
	for i := range 2 * rounds {
		deflated := i%2 == 1
		if err := g.Freeze(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if deflated {
			if _, _, err := g.Deflate(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		if deflated {
			if err := g.Inflate(env.Resources{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Thaw(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		took[deflated] = append(took[deflated], time.Since(begun))
	}
	for _, list := range took {
		slices.Sort(list)
	}
	plain, deflated := took[false], took[true]
	t.Logf("thaw: p50 %s, p99 %s; swap off and thaw after a deflation: p50 %s, p99 %s",
		plain[rounds/2], plain[rounds-1], deflated[rounds/2], deflated[rounds-1])
	if most := 5*plain[rounds/2] + 20*time.Millisecond; deflated[rounds/2] > most {
		t.Errorf("p50 after a deflation = %s, want at most %s", deflated[rounds/2], most)
	}
}

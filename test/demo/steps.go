package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"hearth/test/stage"
)

// play is the state that steps hand on.
type play struct {
	*stage.Stage

	clean    stage.Inventory // with full pools and nobody's environments
	released []string        // slots that are gone
	a, b     stage.Claimed   // two running environments
	miner    stage.Claimed
	first    snapshotInfo
	latest   snapshotInfo
}

// step is one line of the demo. It returns the facts to print.
type step struct {
	name string
	run  func(*play) (string, error)
}

var steps = []step{
	{"pool-ready", (*play).poolReady},
	{"claim-warm", (*play).claimWarm},
	{"exec", (*play).exec},
	{"root-inside", (*play).rootInside},
	{"egress-internet", (*play).egressInternet},
	{"egress-metadata-blocked", (*play).egressMetadata},
	{"egress-neighbour-blocked", (*play).egressNeighbour},
	{"egress-node-blocked", (*play).egressNode},
	{"miner-detected", (*play).minerDetected},
	{"miner-frozen", (*play).minerFrozen},
	{"snapshot", (*play).snapshot},
	{"snapshot-incremental", (*play).snapshotIncremental},
	{"restore", (*play).restore},
	{"fork", (*play).fork},
	{"agent-restart-survived", (*play).agentRestart},
	{"release-clean", (*play).releaseClean},
}

// runSteps starts the daemons and plays every step, up to the first that fails.
func runSteps(s *stage.Stage) error {
	// A signal ends this process at once; the one that set the stage clears it.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-stop; os.Exit(130) }()

	p := &play{Stage: s}
	if err := p.StartDaemons(); err != nil {
		return err
	}
	for _, st := range steps {
		facts, err := st.run(p)
		if err != nil {
			fmt.Printf("demo: %s FAILED %s\n", st.name, oneLine(err))
			return fmt.Errorf("step %s failed", st.name)
		}
		fmt.Printf("demo: %s ok %s\n", st.name, facts)
	}
	return nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }

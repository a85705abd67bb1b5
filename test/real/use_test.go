//go:build e2e

package real

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/test/stage"
)

func TestRealPackagesAreInstalledAndTheirDaemonsAnswer(t *testing.T) {
	m := claim(t, "debian")
	m.sh(t, `apt-get update -q
grep -q . /var/lib/apt/lists/*_InRelease # the mirror's signature was checked`)
	m.sh(t, `export DEBIAN_FRONTEND=noninteractive
apt-get install -q -y --no-install-recommends nginx-light openssh-server openssh-client iputils-ping strace python3`)
	// The package gives ping a capability that the image's hook takes off again.
	m.sh(t, `apt-get install -q -y --reinstall iputils-ping && [ -z "$(getcap /usr/bin/ping)" ] && ping -c 1 -W 2 `+stage.PublicAddress)
	// Installation starts them, as on any Debian machine.
	ok(t, stage.Eventually(10*time.Second, func() error {
		page, err := m.Get(80, "/")
		if err == nil && !strings.Contains(page, "Welcome to nginx!") {
			err = fmt.Errorf("nginx answers %q", page)
		}
		return err
	}))
	is(t, m.sh(t, `useradd --create-home --shell /bin/bash alice
echo 'alice ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/alice
su alice -c "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519 && cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys"
pgrep -x sshd >/dev/null
su alice -c "ssh -o StrictHostKeyChecking=no -o BatchMode=yes alice@127.0.0.1 'id -un; sudo -n id -un'" 2>/tmp/ssh.log || { cat /tmp/ssh.log >&2; exit 1; }`), "alice\nroot")
	is(t, m.sh(t, `strace -f -o /tmp/trace -e trace=execve sh -c 'ls / >/dev/null; true'
grep -c 'execve.*= 0' /tmp/trace
cat >/tmp/pool.py <<'END'
import multiprocessing, os, sqlite3, tempfile
def square(n):
    return n * n
if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool: # semaphores in /dev/shm
        print(sum(pool.map(square, range(1000))))
    db = sqlite3.connect(os.path.join(tempfile.mkdtemp(), "db"))
    db.execute("pragma journal_mode=wal") # maps shared memory in a file
    db.execute("create table t (n)")
    db.executemany("insert into t values (?)", [(n,) for n in range(100)])
    db.commit()
    print(db.execute("select sum(n) from t").fetchone()[0])
END
python3 /tmp/pool.py`), "2\n332833500\n4950")
	m.sh(t, `DEBIAN_FRONTEND=noninteractive apt-get purge -q -y nginx openssh-server && ! pgrep -x nginx`)
}

func TestRealUsersAreMadeAndChange(t *testing.T) {
	m := claim(t, "debian")
	is(t, m.sh(t, `useradd -m -u 4321 bob
echo bob:correct-horse | chpasswd
groupadd -g 5000 team && usermod -aG team bob
su - bob -c 'id -u; id -Gn; touch ~/mine; stat -c %U ~/mine'
userdel -r bob
! id bob 2>/dev/null`), "4321\nbob team\nbob")
}

func TestRealPingReachesWhatIsAllowedAndNothingElse(t *testing.T) {
	m := claim(t, "debian")
	m.sh(t, "ping -c 2 -i 0.2 -W 2 "+stage.PublicAddress)
	m.sh(t, "su nobody -s /bin/sh -c 'ping -c 1 -W 2 "+stage.PublicAddress+"'")
	// With a file capability that nobody here can have, it is not executed.
	m.sh(t, `cp /usr/bin/ping /tmp/ping
setcap cap_net_raw+ep /tmp/ping
! /tmp/ping -c 1 -W 2 `+stage.PublicAddress+`
setcap -r /tmp/ping
/tmp/ping -c 1 -W 2 `+stage.PublicAddress)
	if out, _, code := m.Hearthctl.Try("exec", m.ID(), "--", "ping", "-c", "1", "-W", "1", stage.UplinkNode); code == 0 {
		t.Errorf("the node answers a ping: %s", out)
	}
}

func TestRealDatabasesRunWhenTheyAreClaimed(t *testing.T) {
	m := claim(t, "databases")
	began := time.Now()
	is(t, m.sh(t, `su postgres -c "psql -qtAX" <<'END'
CREATE TABLE numbers AS SELECT n FROM generate_series(1, 200000) n;
ANALYZE numbers;
SELECT sum(n) FROM numbers;
END`), "20000100000")
	t.Logf("the first queries were answered %s after the claim", time.Since(began).Round(time.Millisecond))
	// Workers of one query share memory, which PostgreSQL reserves in /dev/shm.
	plan := m.sh(t, `su postgres -c "psql -qtAX" <<'END'
SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT count(*) FROM numbers WHERE n % 7 = 0;
END`)
	if !strings.Contains(plan, "Workers Launched: 2") {
		t.Errorf("no parallel query:\n%s", plan)
	}
	m.sh(t, `su postgres -c "pgbench -q -i -s 1 postgres && pgbench -c 4 -j 2 -T 2 postgres" >/tmp/pgbench 2>&1 || { cat /tmp/pgbench >&2; exit 1; }`)
	is(t, m.sh(t, `redis-cli set greeting hello >/dev/null
redis-cli bgsave >/dev/null # forks
until redis-cli info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.1; done
redis-cli info persistence | grep -o rdb_last_bgsave_status:ok
redis-cli get greeting`), "rdb_last_bgsave_status:ok\nhello")

	// What was committed is in a snapshot of the running database.
	var snap struct {
		Snapshot struct {
			ID string `json:"id"`
		} `json:"snapshot"`
	}
	ok(t, m.Hearthctl.Decode(&snap, "snapshot", "create", m.ID()))
	again := claim(t, "databases", "--snapshot", snap.Snapshot.ID)
	is(t, again.sh(t, `su postgres -c "psql -qtAXc 'SELECT count(*) FROM numbers'"; redis-cli get greeting`), "200000\nhello")
	// Both go on from there, each for itself.
	is(t, again.sh(t, `su postgres -c "psql -qtAXc 'DELETE FROM numbers'"; su postgres -c "psql -qtAXc 'SELECT count(*) FROM numbers'"`), "0")
	is(t, m.sh(t, `su postgres -c "psql -qtAXc 'SELECT count(*) FROM numbers'"`), "200000")
}

func TestRealProjectsAreCommittedAndBuilt(t *testing.T) {
	m := claim(t, "debian")
	is(t, m.sh(t, `git config --global user.email dev@example.com
git config --global user.name dev
git init -q -b main /workspace/project
cd /workspace/project
cat >hello.c <<'END'
#include <stdio.h>
#include <pthread.h>
static void *say(void *what) { puts(what); return NULL; }
int main(void) {
	pthread_t t;
	if (pthread_create(&t, NULL, say, "hello from a thread")) return 1;
	return pthread_join(t, NULL);
}
END
printf 'hello: hello.c\n\tcc -O2 -Wall -Werror -pthread -o $@ $<\n' >Makefile
make -s hello
./hello
git add hello.c Makefile
git commit -q -m 'First words'
git clone -q . /tmp/clone
cd /tmp/clone && make -s hello && ./hello
git log --format=%s
git fsck --strict 2>&1 | grep -v '^notice' || true`), "hello from a thread\nhello from a thread\nFirst words")
}

// server listens on each port that it is given, and says its number.
const server = `cat >/tmp/server.c <<'END'
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 16)) { perror("listen"); return 1; }
	for (;;) {
		int c = accept(s, NULL, NULL);
		dprintf(c, "port %s\n", argv[1]);
		close(c);
	}
}
END
cc -O2 -Wall -o /usr/local/bin/server /tmp/server.c
`

func TestRealServicesOnManyPortsAreReached(t *testing.T) {
	m := claim(t, "debian")
	m.sh(t, server+fmt.Sprintf(`for p in $(seq %d %d); do setsid server $p >/dev/null 2>&1 </dev/null & done`, firstPort, firstPort+ports-1))
	const local = 10000
	args := []string{"port-forward", m.ID()}
	for i := range ports {
		args = append(args, fmt.Sprintf("%d:%d", local+i, firstPort+i))
	}
	forward := m.Hearthctl.Command(args...)
	ok(t, forward.Start())
	defer func() {
		ok(t, forward.Process.Signal(syscall.SIGINT))
		_ = forward.Wait()
	}()
	for i := range ports {
		ok(t, stage.Eventually(10*time.Second, func() error {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", local+i), time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			ok(t, conn.SetDeadline(time.Now().Add(2*time.Second)))
			line, err := bufio.NewReader(conn).ReadString('\n')
			if want := fmt.Sprintf("port %d\n", firstPort+i); err != nil || line != want {
				return fmt.Errorf("the forwarded port says %q, want %q: %w", line, want, err)
			}
			return nil
		}))
	}
}

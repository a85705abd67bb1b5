// Command intruder is what a hostile root inside an environment would bring along:
//
//	deep N DIR      makes N directories below each other, with names of 200 bytes
//	many N DIR      makes N names of 255 bytes, every second one a link of 4,000
//	tiny N DIR      makes N empty files, a thousand to a directory
//	overwrite       writes zeros over the code of pid 1
//	possess PROGRAM makes pid 1 run another program, with the argument "turned"
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("which role?"))
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "deep":
		deep(number(args[0]), args[1])
	case "many":
		many(number(args[0]), args[1])
	case "tiny":
		tiny(number(args[0]), args[1])
	case "overwrite":
		overwrite()
	case "possess":
		possess(args[0])
	default:
		fail(fmt.Errorf("no role %q", os.Args[1]))
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "intruder:", err)
	os.Exit(3)
}

// deep goes down as it makes, since the path is soon longer than one may be.
func deep(n int, dir string) {
	check(os.MkdirAll(dir, 0o755))
	check(os.Chdir(dir))
	name := strings.Repeat("d", 200)
	for range n {
		check(unix.Mkdir(name, 0o755))
		check(unix.Chdir(name))
	}
}

func many(n int, dir string) {
	check(os.MkdirAll(dir, 0o755))
	check(os.Chdir(dir))
	long := strings.Repeat("/nowhere", 500)
	for i := range n {
		name := fmt.Sprintf("%06d", i)
		name += strings.Repeat("\xff\n", (255-len(name))/2) + "x"
		if i%2 == 0 {
			check(unix.Symlink(long, name))
			continue
		}
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY, 0o644)
		check(err)
		check(unix.Close(fd))
	}
}

func tiny(n int, dir string) {
	for i := range n {
		if i%1000 == 0 {
			below := fmt.Sprintf("%s/%d", dir, i/1000)
			check(os.MkdirAll(below, 0o755))
			check(os.Chdir(below))
		}
		fd, err := unix.Open(strconv.Itoa(i), unix.O_CREAT|unix.O_WRONLY, 0o644)
		check(err)
		check(unix.Close(fd))
	}
}

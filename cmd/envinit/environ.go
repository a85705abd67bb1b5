package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"hearth/internal/guest/wire"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxPasswd bounds what is read of /etc/passwd, in bytes.
const maxPasswd = 256 << 10

// account is what /etc/passwd says of a user.
type account struct{ name, home string }

// findAccount looks a user up. Users that are not listed live in /.
func findAccount(passwd io.Reader, uid uint32) account {
	want := strconv.FormatUint(uint64(uid), 10)
	lines := bufio.NewScanner(io.LimitReader(passwd, maxPasswd))
	for lines.Scan() {
		fields := bytes.Split(lines.Bytes(), []byte(":"))
		if len(fields) >= 6 && string(fields[2]) == want {
			return account{name: string(fields[0]), home: string(fields[5])}
		}
	}
	if uid == 0 {
		return account{name: "root", home: "/root"}
	}
	return account{home: "/"}
}

func accountOf(uid uint32) account {
	f, err := openPlain("/etc/passwd")
	if err != nil {
		return findAccount(strings.NewReader(""), uid)
	}
	defer f.Close()
	return findAccount(f, uid)
}

// openPlain opens a regular file for reading. It does not wait: for the writer of a
// fifo that somebody inside has put in its place, nor for a process that holds a
// lease on it.
func openPlain(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// environ merges layers of variables over the base; later layers win.
func environ(a account, layers ...map[string]string) []string {
	vars := map[string]string{"PATH": defaultPath, "HOME": a.home}
	if a.name != "" {
		vars["USER"] = a.name
		vars["LOGNAME"] = a.name
	}
	for _, layer := range layers {
		maps.Copy(vars, layer)
	}
	out := make([]string, 0, len(vars))
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, name+"="+vars[name])
	}
	return out
}

func lookup(environ []string, name string) string {
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// findProgram resolves a command as execvp does, but by the PATH that the
// process will have. Relative elements of PATH count from dir.
func findProgram(name, dir string, environ []string) (string, *wire.Error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := lookup(environ, "PATH")
	for _, d := range strings.Split(path, ":") {
		if !strings.HasPrefix(d, "/") {
			d = dir + "/" + d
		}
		full := d + "/" + name
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", wire.Errorf(wire.CodeNotFound, "command %.128q is in no directory of PATH=%.512s", name, path)
}

// claimVariables reads what the claim brought; without a file there is none.
func claimVariables() (map[string]string, error) {
	f, err := openPlain(wire.EnvJSONFile)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, wire.MaxRequest))
	if err != nil {
		return nil, err
	}
	return wire.DecodeEnv(content)
}

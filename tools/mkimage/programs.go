package main

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"
)

// passwd names the two users that our images run as.
const (
	passwd = "root:x:0:0:root:/:/nonexistent\nnonroot:x:65532:65532:nonroot:/:/nonexistent\n"
	group  = "root:x:0:\nnonroot:x:65532:\n"
)

// programs is the file system of an image that has nothing but programs, each
// given as SOURCE=/path, the two files by which a user has a name, and a
// directory for temporary files.
func programs(files []string) ([]entry, error) {
	byName := map[string]entry{}
	add := func(e entry) { byName[path.Clean(e.name)] = e }
	add(directory("etc", 0o755))
	add(directory("tmp", 0o1777))
	add(file("etc/passwd", 0o644, passwd))
	add(file("etc/group", 0o644, group))
	for _, f := range files {
		source, target, found := strings.Cut(f, "=")
		if !found || !path.IsAbs(target) || path.Clean(target) == "/" {
			return nil, fmt.Errorf("-file %s: want SOURCE=/path", f)
		}
		if err := checkStatic(source); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(source)
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean(target), "/")
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, known := byName[dir]; !known {
				add(directory(dir, 0o755))
			}
		}
		add(entry{name: name, kind: tar.TypeReg, mode: 0o755, data: data})
	}
	entries := make([]entry, 0, len(byName))
	for _, e := range byName {
		entries = append(entries, e)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	return entries, nil
}

// checkStatic refuses a program that asks for a dynamic loader: the image has none.
func checkStatic(source string) error {
	program, err := elf.Open(source)
	if err != nil {
		return fmt.Errorf("%s is no program: %w", source, err)
	}
	defer program.Close()
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically; build it with CGO_ENABLED=0", source)
		}
	}
	return nil
}

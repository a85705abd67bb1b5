// Docscheck holds the documents against the tree: links and paths lead
// somewhere, `make` targets exist, the list of dependencies is go.mod's, and
// ARCHITECTURE.md stays short enough to be read.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// architectureLines is the most that ARCHITECTURE.md may have.
const architectureLines = 300

func main() {
	dir := flag.String("dir", ".", "the repository's root")
	flag.Parse()
	faults, err := check(os.DirFS(*dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, "docscheck:", err)
		os.Exit(1)
	}
	for _, fault := range faults {
		fmt.Fprintln(os.Stderr, "docs:", fault)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// check returns a line for each fault of the documents in root.
func check(root fs.FS) ([]string, error) {
	documents, err := markdown(root)
	if err != nil {
		return nil, err
	}
	targets, err := makeTargets(root)
	if err != nil {
		return nil, err
	}
	var faults []string
	for _, path := range documents {
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return nil, err
		}
		faults = append(faults, checkLinks(root, path, string(text))...)
		faults = append(faults, checkTargets(path, string(text), targets)...)
		if path == "ARCHITECTURE.md" {
			if lines := strings.Count(string(text), "\n"); lines > architectureLines {
				faults = append(faults, fmt.Sprintf("%s: %d lines, at most %d", path, lines, architectureLines))
			}
		}
	}
	dependencies, err := checkDependencies(root)
	return append(faults, dependencies...), err
}

// markdown lists the documents, leaving out what is built, vendored or a fixture.
func markdown(root fs.FS) ([]string, error) {
	var documents []string
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			// Others may be building in the tree.
			if errors.Is(err, fs.ErrNotExist) && path != "." {
				return nil
			}
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return fs.SkipDir
		}
		if !entry.IsDir() && filepath.Ext(name) == ".md" {
			documents = append(documents, path)
		}
		return nil
	})
	return documents, err
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// exclusiveTests are those that work on the one kernel and containerd that all
// packages share: TestKernel… and TestNode….
const exclusiveTests = `^Test(Kernel|Node)`

var exclusiveFunc = regexp.MustCompile(`(?m)^func Test(Kernel|Node)`)

// exclusivePackages lists the packages of the module in dir that have such
// tests, in the order of go list.
func exclusivePackages(ctx context.Context, dir string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	listing, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages of %s: %w", dir, err)
	}
	var found []string
	decoder := json.NewDecoder(bytes.NewReader(listing))
	for {
		var pkg struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		has, err := hasExclusive(pkg.Dir, append(pkg.TestGoFiles, pkg.XTestGoFiles...))
		if err != nil {
			return nil, err
		}
		if has {
			found = append(found, pkg.ImportPath)
		}
	}
}

func hasExclusive(dir string, files []string) (bool, error) {
	for _, file := range files {
		source, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return false, err
		}
		if exclusiveFunc.Match(source) {
			return true, nil
		}
	}
	return false, nil
}

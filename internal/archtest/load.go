package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// listed is what `go list -json` says of a package. Files of every build tag
// count: a rule that a tag switches off is no rule.
type listed struct {
	ImportPath     string
	Dir            string
	GoFiles        []string
	CgoFiles       []string
	IgnoredGoFiles []string
	TestGoFiles    []string
	XTestGoFiles   []string
}

// load reads the packages of the module in dir, as `go list ./...` names them.
func load(dir string) ([]file, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages of %s: %w: %s", dir, err, stderr.String())
	}
	var files []file
	decoder := json.NewDecoder(bytes.NewReader(output))
	for {
		var pkg listed
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		for _, name := range slices.Concat(pkg.GoFiles, pkg.CgoFiles, pkg.IgnoredGoFiles, pkg.TestGoFiles, pkg.XTestGoFiles) {
			f, err := parse(pkg, name)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
}

func parse(pkg listed, name string) (file, error) {
	source, err := os.ReadFile(filepath.Join(pkg.Dir, name))
	if err != nil {
		return file{}, err
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return file{}, fmt.Errorf("parse %s: %w", filepath.Join(pkg.Dir, name), err)
	}
	local, _ := relative(pkg.ImportPath)
	f := file{
		name:      name,
		pkgPath:   local,
		lines:     bytes.Count(source, []byte("\n")),
		generated: ast.IsGenerated(parsed),
		test:      strings.HasSuffix(name, "_test.go"),
		hasDoc:    parsed.Doc != nil,
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, fmt.Errorf("parse %s: import %s: %w", name, spec.Path.Value, err)
		}
		f.imports = append(f.imports, imported)
	}
	return f, nil
}

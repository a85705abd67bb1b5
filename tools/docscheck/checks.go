package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

var (
	link        = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading     = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	makeWord    = regexp.MustCompile("`(?:sudo )?make ([a-z][a-z0-9-]*)")
	makeLine    = regexp.MustCompile(`(?m)^\s*(?:\$ |# |sudo )*make ([a-z][a-z0-9-]*)`)
	makeRule    = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)*):`)
	codeBlock   = regexp.MustCompile("(?ms)^```.*?^```")
	tableRow    = regexp.MustCompile("(?m)^\\| *`([^`]+)` *\\|(.*)\\|$")
)

// checkLinks follows relative links to files and to headings.
func checkLinks(root fs.FS, document, text string) []string {
	var faults []string
	for _, match := range link.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
		target, anchor, _ := strings.Cut(match[1], "#")
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		file := document
		if target != "" {
			file = path.Join(path.Dir(document), target)
		}
		content, err := fs.ReadFile(root, file)
		if info, statErr := fs.Stat(root, file); statErr == nil && info.IsDir() {
			continue
		}
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: link to %s, which does not exist", document, match[1]))
			continue
		}
		if anchor != "" && path.Ext(file) == ".md" && !slices.Contains(anchors(string(content)), anchor) {
			faults = append(faults, fmt.Sprintf("%s: link to %s: %s has no such heading", document, match[1], file))
		}
	}
	return faults
}

// anchors are the fragments that readers of Markdown give to headings.
func anchors(text string) []string {
	var found []string
	for _, match := range heading.FindAllStringSubmatch(text, -1) {
		plain := notInAnchor.ReplaceAllString(strings.ToLower(match[1]), "")
		found = append(found, strings.ReplaceAll(strings.TrimSpace(plain), " ", "-"))
	}
	return found
}

func makeTargets(root fs.FS) ([]string, error) {
	makefile, err := fs.ReadFile(root, "Makefile")
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, match := range makeRule.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, strings.Fields(match[1])...)
	}
	return targets, nil
}

// checkTargets finds `make …` in text and in code blocks that names no target.
func checkTargets(document, text string, targets []string) []string {
	matches := makeWord.FindAllStringSubmatch(text, -1)
	for _, block := range codeBlock.FindAllString(text, -1) {
		matches = append(matches, makeLine.FindAllStringSubmatch(block, -1)...)
	}
	var faults []string
	for _, match := range matches {
		if !slices.Contains(targets, match[1]) {
			faults = append(faults, fmt.Sprintf("%s: `make %s` is no target of the Makefile", document, match[1]))
		}
	}
	return faults
}

const dependencyList = "docs/dependencies.md"

// checkDependencies compares the modules that go.mod requires directly with the
// rows of the dependency list, whose first cell is a module in backquotes and
// whose other cells may not be empty.
func checkDependencies(root fs.FS) ([]string, error) {
	source, err := fs.ReadFile(root, "go.mod")
	if err != nil {
		return nil, err
	}
	parsed, err := modfile.Parse("go.mod", source, nil)
	if err != nil {
		return nil, err
	}
	text, err := fs.ReadFile(root, dependencyList)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{dependencyList + " does not exist"}, nil
	} else if err != nil {
		return nil, err
	}
	explained := map[string]bool{}
	var faults []string
	for _, row := range tableRow.FindAllStringSubmatch(string(text), -1) {
		explained[row[1]] = true
		for _, cell := range strings.Split(row[2], "|") {
			if strings.TrimSpace(cell) == "" {
				faults = append(faults, fmt.Sprintf("%s: %s has an empty cell", dependencyList, row[1]))
			}
		}
	}
	for _, require := range parsed.Require {
		if require.Indirect {
			continue
		}
		if !explained[require.Mod.Path] {
			faults = append(faults, fmt.Sprintf("%s: %s of go.mod is not explained", dependencyList, require.Mod.Path))
		}
		delete(explained, require.Mod.Path)
	}
	for name := range explained {
		faults = append(faults, fmt.Sprintf("%s: %s is not required directly by go.mod", dependencyList, name))
	}
	slices.Sort(faults)
	return faults, nil
}

package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// file is one Go source file as the checks see it.
type file struct {
	name      string // base name
	pkgPath   string // of the folder, relative to the module, "" for the root
	lines     int
	generated bool
	test      bool
	hasDoc    bool     // has a comment on its package clause
	imports   []string // import paths
}

// check holds files against the policy and returns one line a fault, sorted.
func check(files []file) []string {
	var faults []string
	add := func(f file, format string, args ...any) {
		faults = append(faults, path.Join(f.pkgPath, f.name)+": "+fmt.Sprintf(format, args...))
	}
	for _, f := range files {
		if f.lines > maxLines && !f.generated {
			add(f, "%d lines, at most %d", f.lines, maxLines)
		}
		for _, imported := range f.imports {
			if fault := checkImport(f, imported); fault != "" {
				add(f, "%s", fault)
			}
		}
	}
	faults = append(faults, checkFolders(files)...)
	slices.Sort(faults)
	return slices.Compact(faults)
}

// checkImport names what is wrong with one import of a file, or returns "".
func checkImport(f file, imported string) string {
	if local, ours := relative(imported); ours {
		return checkLocal(f, local)
	}
	if slices.Contains(linuxOnly, imported) && !linuxFile(f.name) {
		return fmt.Sprintf("imports %s, which only *_linux.go and *_linux_test.go may", imported)
	}
	if isStandard(imported) {
		return ""
	}
	if l, ok := layerOf(f.pkgPath); ok && l.stdOnly && !f.test {
		return fmt.Sprintf("imports %s; %s uses the standard library only", imported, f.pkgPath)
	}
	for _, fence := range fences {
		if covers(fence.library, imported) && !insideFence(fence, f) {
			return fmt.Sprintf("imports %s, which belongs to %s", imported, strings.Join(fence.inside, ", "))
		}
	}
	return ""
}

// checkLocal holds an import of a package of ours against the layers.
func checkLocal(f file, local string) string {
	if isTestSupport(local) {
		if f.test || isTestSupport(f.pkgPath) {
			return ""
		}
		return fmt.Sprintf("imports %s outside a test", local)
	}
	l, ok := layerOf(f.pkgPath)
	if !ok {
		return fmt.Sprintf("package %s has no place in the import table (internal/archtest/policy.go)", f.pkgPath)
	}
	if subtreeOf(f.pkgPath) == subtreeOf(local) {
		// wire is shared with envinit and stands on nothing, not even on guest.
		if l.stdOnly && f.pkgPath != local && !f.test {
			return fmt.Sprintf("imports %s; %s uses the standard library only", local, f.pkgPath)
		}
		return ""
	}
	if !l.stdOnly && coveredByAny(l.imports, local) {
		return ""
	}
	return fmt.Sprintf("imports %s, which %s may not", local, f.pkgPath)
}

// checkFolders finds packages without a package comment, outside the table, or
// with a name that says nothing.
func checkFolders(files []file) []string {
	documented := map[string]bool{}
	for _, f := range files {
		if f.test || f.generated && !f.hasDoc {
			continue
		}
		documented[f.pkgPath] = documented[f.pkgPath] || f.hasDoc
	}
	var faults []string
	for folder, doc := range documented {
		if !doc {
			faults = append(faults, folder+": no package comment (doc.go)")
		}
		if _, ok := layerOf(folder); !ok {
			faults = append(faults, folder+": has no place in the import table (internal/archtest/policy.go)")
		}
		for _, part := range strings.Split(folder, "/") {
			if slices.Contains(forbiddenNames, part) {
				faults = append(faults, fmt.Sprintf("%s: a folder named %q says nothing about what is in it", folder, part))
			}
		}
	}
	return faults
}

// layerOf finds the layer with the longest name that covers the package.
func layerOf(pkg string) (layer, bool) {
	var found layer
	longest := -1
	for _, l := range layers {
		for _, name := range l.packages {
			if covers(name, pkg) && len(name) > longest {
				found, longest = l, len(name)
			}
		}
	}
	return found, longest >= 0
}

// subtreeOf is the named package of the table that the package belongs to:
// internal/detect for internal/detect/evidence, but cmd/nodeagent for itself,
// since programs are not parts of each other.
func subtreeOf(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	if len(parts) < 2 || parts[0] == "api" || parts[0] == "bpf" {
		return parts[0]
	}
	return parts[0] + "/" + parts[1]
}

func insideFence(fence fence, f file) bool {
	return coveredByAny(fence.inside, f.pkgPath) ||
		slices.Contains(fence.inside, path.Join(f.pkgPath, f.name)) ||
		strings.HasPrefix(f.pkgPath, "test/")
}

func coveredByAny(names []string, pkg string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return covers(name, pkg) })
}

// covers says whether pkg is name or below it.
func covers(name, pkg string) bool {
	return pkg == name || strings.HasPrefix(pkg, name+"/")
}

// relative strips our module's name.
func relative(imported string) (string, bool) {
	if imported == module {
		return "", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// isStandard: the first element of a path outside the standard library has a dot.
func isStandard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

func linuxFile(name string) bool {
	return strings.HasSuffix(name, "_linux.go") || strings.HasSuffix(name, "_linux_test.go")
}

// Package builtin holds the rules that Hearth ships, with their fixtures, as
// files at the root of a file system.
package builtin

import (
	"embed"
	"io/fs"
)

//go:embed *.yaml
var files embed.FS

// Files is the layer of the rules.
func Files() fs.FS { return files }

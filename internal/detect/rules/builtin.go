package rules

import (
	"io/fs"

	"hearth/internal/detect/rules/builtin"
)

// Builtin is the layer of rules that Hearth ships.
func Builtin() fs.FS { return builtin.Files() }

//go:build never

package cgroups

import _ "golang.org/x/sys/unix"

//go:build !amd64

package main

import "errors"

func possess(string) { fail(errors.New("known for amd64 only")) }

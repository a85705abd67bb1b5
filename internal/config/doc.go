// Package config reads what operators and callers write: nodeagent.yaml,
// controller.yaml, EnvironmentClass manifests and hearthctl's config.yaml.
//
// There is one loader and it is strict. Unknown keys, duplicate keys, values of
// the wrong type, aliases and surplus documents are errors that name the file,
// the line, the key and, where one is near, the key that was probably meant.
// All faults of a file are reported together. Nothing is read from the
// environment of the process except by LoadClient, whose caller passes it in.
//
// Defaults live in one function for each file (defaultAgent, defaultController,
// defaultClass): a key that is absent, empty or zero takes its default. The
// files in testdata/defaults are these functions' output and the reference.
//
// The package refuses to guess: it makes no directory, resolves no name and
// asks no kernel. Whether a path or an address works is found out by the part
// that uses it.
package config

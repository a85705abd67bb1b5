// Package rules holds what Hearth looks for in events, as data.
//
// A rule is a name, a severity and a CEL condition over one kind of event: the
// first bytes of a flow's direction (payload), an exec, a TCP connect. Rules
// live in YAML files with their fixtures beside them: `x.yaml` has rules,
// `x.fixtures.yaml` has events with the exact names of the rules that must
// match. A layer (a directory) is accepted as a whole: it is decoded strictly,
// compiled, type-checked, every rule must have a fixture that it matches and
// one of the same kind that it does not, and every fixture must come out as
// written, also when a payload arrives byte by byte.
//
// Conditions must be monotone in a payload: they are asked again whenever more
// bytes are known, and the first yes counts.
//
// Payloads are text of strangers. payload.messages() finds JSON objects where
// a protocol would have them (at the beginning of the stream or of a line, at
// the beginning of an HTTP body or WebSocket frame), so that a document which
// merely quotes a protocol is not one. It takes whitespace, any order of keys,
// escapes, repeated keys, batches, pretty-printing and an unfinished end.
package rules

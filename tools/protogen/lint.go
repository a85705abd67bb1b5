package main

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

var (
	upperCamel = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)
	lowerSnake = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	upperSnake = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$`)
	camelEdge  = regexp.MustCompile(`([a-z0-9])([A-Z])`)
	versioned  = regexp.MustCompile(`\.v[0-9]+((alpha|beta)[0-9]+)?$`)
)

// lint returns a line for each name in a file that breaks the rules of the
// protobuf style guide which callers of the API would feel: a package is its
// folder and has a version, an enum's zero value says UNSPECIFIED and its values
// carry its name, services end in Service.
func lint(f protoreflect.FileDescriptor) []string {
	var faults []string
	fault := func(d protoreflect.Descriptor, format string, args ...any) {
		line := f.SourceLocations().ByDescriptor(d).StartLine + 1
		faults = append(faults, fmt.Sprintf("%s:%d: %s", f.Path(), line, fmt.Sprintf(format, args...)))
	}
	if want := strings.ReplaceAll(string(f.Package()), ".", "/"); path.Dir(f.Path()) != want {
		fault(f, "package %s belongs in %s", f.Package(), want)
	}
	if !versioned.MatchString(string(f.Package())) {
		fault(f, "package %s has no version", f.Package())
	}
	for i := range f.Enums().Len() {
		lintEnum(f.Enums().Get(i), fault)
	}
	for i := range f.Messages().Len() {
		lintMessage(f.Messages().Get(i), fault)
	}
	for i := range f.Services().Len() {
		lintService(f.Services().Get(i), fault)
	}
	return faults
}

type faultFunc func(d protoreflect.Descriptor, format string, args ...any)

func lintEnum(e protoreflect.EnumDescriptor, fault faultFunc) {
	if !upperCamel.MatchString(string(e.Name())) {
		fault(e, "enum %s: want UpperCamelCase", e.Name())
	}
	prefix := strings.ToUpper(camelEdge.ReplaceAllString(string(e.Name()), "${1}_$2")) + "_"
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		name := string(v.Name())
		if !upperSnake.MatchString(name) || !strings.HasPrefix(name, prefix) {
			fault(v, "enum value %s: want %s…", name, prefix)
		}
		if v.Number() == 0 && name != prefix+"UNSPECIFIED" {
			fault(v, "enum value %s: zero is %sUNSPECIFIED", name, prefix)
		}
	}
}

func lintMessage(m protoreflect.MessageDescriptor, fault faultFunc) {
	if m.IsMapEntry() {
		return
	}
	if !upperCamel.MatchString(string(m.Name())) {
		fault(m, "message %s: want UpperCamelCase", m.Name())
	}
	for i := range m.Fields().Len() {
		if field := m.Fields().Get(i); !lowerSnake.MatchString(string(field.Name())) {
			fault(field, "field %s: want lower_snake_case", field.Name())
		}
	}
	for i := range m.Oneofs().Len() {
		if oneof := m.Oneofs().Get(i); !oneof.IsSynthetic() && !lowerSnake.MatchString(string(oneof.Name())) {
			fault(oneof, "oneof %s: want lower_snake_case", oneof.Name())
		}
	}
	for i := range m.Enums().Len() {
		lintEnum(m.Enums().Get(i), fault)
	}
	for i := range m.Messages().Len() {
		lintMessage(m.Messages().Get(i), fault)
	}
}

func lintService(s protoreflect.ServiceDescriptor, fault faultFunc) {
	if !upperCamel.MatchString(string(s.Name())) || !strings.HasSuffix(string(s.Name()), "Service") {
		fault(s, "service %s: want UpperCamelCase ending in Service", s.Name())
	}
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		if !upperCamel.MatchString(string(m.Name())) {
			fault(m, "method %s: want UpperCamelCase", m.Name())
		}
	}
}

// Protogen compiles the protobuf files of a folder and runs the two code
// generators on them, in one process tree and without protoc. It also holds the
// files against the naming rules in lint.go.
//
// It exists because the usual driver brings a container engine's client, a
// WebAssembly runtime and two minutes of compilation for what is one call each
// of a compiler and two plugins.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// plugin is a generator, run as `go tool NAME` in the module that pins it (so
// protogen runs in the folder of that module), and its parameter.
type plugin struct{ name, parameter string }

var plugins = []plugin{
	{"protoc-gen-go", "paths=source_relative"},
	{"protoc-gen-connect-go", "paths=source_relative,simple"},
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("protogen", flag.ContinueOnError)
	dir := flags.String("dir", ".", "import root of the .proto files; output goes beside them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names, err := protoFiles(*dir)
	if err != nil {
		return err
	}
	files, err := compile(ctx, *dir, names)
	if err != nil {
		return err
	}
	var faults []string
	for _, f := range files {
		faults = append(faults, lint(f)...)
	}
	if len(faults) > 0 {
		return fmt.Errorf("names:\n%s", strings.Join(faults, "\n"))
	}
	for _, p := range plugins {
		if err := generate(ctx, *dir, p, names, files); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// protoFiles lists the .proto files below dir, relative to it, sorted.
func protoFiles(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".proto" {
			return err
		}
		name, err := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(name))
		return err
	})
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no .proto file below %s", dir)
	}
	return names, err
}

func compile(ctx context.Context, dir string, names []string) (linker.Files, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	return compiler.Compile(ctx, names...)
}

// generate speaks the plugin protocol: a request on standard input, a response
// on standard output (google/protobuf/compiler/plugin.proto).
func generate(ctx context.Context, dir string, p plugin, names []string, files linker.Files) error {
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: names,
		Parameter:      proto.String(p.parameter),
		ProtoFile:      inOrder(files),
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", p.name)
	cmd.Stdin = bytes.NewReader(request)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return fmt.Errorf("decode response: %w", err)
	}
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for _, f := range response.GetFile() {
		path := filepath.Join(dir, filepath.FromSlash(f.GetName()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// inOrder is every file and what it imports, imports first, as plugins require.
func inOrder(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var ordered []*descriptorpb.FileDescriptorProto
	var seen []string
	var visit func(protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if slices.Contains(seen, f.Path()) {
			return
		}
		seen = append(seen, f.Path())
		imports := f.Imports()
		for i := range imports.Len() {
			visit(imports.Get(i).FileDescriptor)
		}
		ordered = append(ordered, protoutil.ProtoFromFileDescriptor(f))
	}
	for _, f := range files {
		visit(f)
	}
	return ordered
}

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var applets = []string{"bin/sh", "usr/sbin/httpd", "opt/odd/applet", "bin/busybox"}

func unpack(t *testing.T, archive []byte) map[string]*tar.Header {
	t.Helper()
	headers := map[string]*tar.Header{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return headers
		}
		if err != nil {
			t.Fatal(err)
		}
		parent := path.Dir(strings.TrimSuffix(header.Name, "/"))
		if parent != "." && headers[parent] == nil {
			t.Errorf("%s comes before its directory %s", header.Name, parent)
		}
		headers[strings.TrimSuffix(header.Name, "/")] = header
	}
}

func tarOf(t *testing.T, entries []entry) []byte {
	t.Helper()
	var buffer bytes.Buffer
	if err := writeTar(&buffer, entries); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestRootfsHasParentsLinksAndModes(t *testing.T) {
	headers := unpack(t, tarOf(t, rootfs([]byte("ELF"), applets)))
	for name, mode := range map[string]int64{"tmp": 0o1777, "root": 0o700, "workspace": 0o755, "bin/busybox": 0o755} {
		if headers[name] == nil || headers[name].Mode != mode {
			t.Errorf("%s: %+v, want mode %o", name, headers[name], mode)
		}
	}
	for _, applet := range []string{"bin/sh", "usr/sbin/httpd"} {
		if headers[applet] == nil || headers[applet].Linkname != "/bin/busybox" {
			t.Errorf("%s: %+v, want a link to /bin/busybox", applet, headers[applet])
		}
	}
	if headers["opt/odd/applet"] != nil {
		t.Error("an applet without a directory was written")
	}
	if headers["bin/busybox"].Typeflag != tar.TypeReg {
		t.Error("the applet named busybox replaced the program")
	}
}

func archiveOf(t *testing.T, s spec, refs ...string) []byte {
	t.Helper()
	img, err := build(s)
	if err != nil {
		t.Fatal(err)
	}
	files, err := archive(img, refs)
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, files)
}

func busyboxSpec() spec {
	return spec{arch: "amd64", rootfs: rootfs([]byte("ELF"), applets), cmd: []string{"/bin/sh"}, workDir: "/workspace"}
}

func TestImageIsTheSameEveryTime(t *testing.T) {
	build := func() []byte { return archiveOf(t, busyboxSpec(), "hearth.local/busybox:1") }
	if !bytes.Equal(build(), build()) {
		t.Error("two builds differ")
	}
}

// extract writes an archive's members below a new directory.
func extract(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, header.Name)
		if header.Typeflag == tar.TypeDir {
			if err := os.Mkdir(name, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// checkIndex validates everything that index leads to. The library's validator
// reads layers only if they are compressed, so theirs are checked here.
func checkIndex(t *testing.T, index v1.ImageIndex) {
	t.Helper()
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	listing, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range listing.Manifests {
		img, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for i, layer := range layers {
			digest, err := layer.Digest()
			if err != nil {
				t.Fatal(err)
			}
			reader, err := layer.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := v1.SHA256(reader); err != nil || got != digest || got != config.RootFS.DiffIDs[i] {
				t.Errorf("layer %d is %s (%v), the manifest says %s, the configuration %s", i, got, err, digest, config.RootFS.DiffIDs[i])
			}
			reader.Close()
		}
	}
}

// The reader and the validator are a registry client's, not ours.
func TestArchiveIsAValidLayoutUnderEveryName(t *testing.T) {
	refs := []string{"docker.io/hearth/pause:devel", "docker.io/hearth/pause:v1"}
	index, err := layout.ImageIndexFromPath(extract(t, archiveOf(t, busyboxSpec(), refs...)))
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, index)
	listing, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range listing.Manifests {
		names = append(names, m.Annotations["io.containerd.image.name"])
		if m.Digest != listing.Manifests[0].Digest {
			t.Error("the names are of different images")
		}
		if m.Platform == nil || m.Platform.String() != "linux/amd64" {
			t.Errorf("platform %v", m.Platform)
		}
	}
	if !slices.Equal(names, refs) {
		t.Errorf("names %q, want %q", names, refs)
	}
}

func program(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "pause")
	build := exec.Command("go", "build", "-trimpath", "-o", out, "../pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

func TestProgramImageHoldsTheProgramAndItsUser(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	err := run([]string{
		"-file", program(t) + "=/opt/bin/pause", "-entrypoint", "/opt/bin/pause", "-user", "65532:65532",
		"-ref", "docker.io/hearth/pause:devel", "-version", "v1", "-o", out,
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(extract(t, data))
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, index)
	listing, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(listing.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := config.Config; c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/opt/bin/pause"}) ||
		c.Labels["org.opencontainers.image.version"] != "v1" {
		t.Errorf("configuration %+v", c)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if h := unpack(t, layer)["opt/bin/pause"]; h == nil || h.Mode != 0o755 {
		t.Errorf("the program is not there as a program: %+v", h)
	}
}

func TestLayerImageHasTheTarByteForByte(t *testing.T) {
	dir := t.TempDir()
	tree := tarOf(t, rootfs([]byte("ELF"), applets))
	if err := os.WriteFile(filepath.Join(dir, "layer.tar"), tree, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "image.tar")
	if err := run([]string{"-layer", filepath.Join(dir, "layer.tar"), "-ref", "hearth.local/debian:12", "-o", out}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(extract(t, data))
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, index)
	digest, _, err := v1.SHA256(bytes.NewReader(tree))
	if err != nil {
		t.Fatal(err)
	}
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := reader.Next()
		if err != nil {
			t.Fatalf("the archive has no blob %s: %v", digest, err)
		}
		if header.Name != "blobs/sha256/"+digest.Hex {
			continue
		}
		if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, tree) {
			t.Errorf("the layer has %d bytes of %d, or others: %v", len(got), len(tree), err)
		}
		return
	}
}

func TestLayerExcludesPrograms(t *testing.T) {
	for _, args := range [][]string{
		{"-layer", "x.tar"},
		{"-layer", "x.tar", "-ref", "a/b:c", "-file", "x=/y", "-entrypoint", "/y"},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), "-layer needs -ref") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestWhatCannotRunInTheImageIsRefused(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"no program":   {text + "=/x", "is no program"},
		"no target":    {text, "want SOURCE=/path"},
		"dynamic":      {"/bin/ls=/ls", "is linked dynamically"},
		"not absolute": {text + "=x", "want SOURCE=/path"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run([]string{"-file", tt.file, "-entrypoint", "/x", "-ref", "a/b:c", "-o", filepath.Join(t.TempDir(), "o")})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestUTCIsAReadableTimeZone(t *testing.T) {
	zone, err := time.LoadLocationFromTZData("UTC", []byte(utc))
	if err != nil {
		t.Fatal(err)
	}
	if name, offset := time.Unix(0, 0).In(zone).Zone(); name != "UTC" || offset != 0 {
		t.Errorf("zone %s, offset %d", name, offset)
	}
}

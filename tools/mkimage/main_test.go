package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"
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

func TestImageIsTheSameEveryTime(t *testing.T) {
	build := func() []byte {
		files, err := layout("hearth.local/busybox:1", "amd64", tarOf(t, rootfs([]byte("ELF"), applets)))
		if err != nil {
			t.Fatal(err)
		}
		return tarOf(t, files)
	}
	if !bytes.Equal(build(), build()) {
		t.Error("two builds differ")
	}
}

func TestLayoutResolvesFromIndexToLayer(t *testing.T) {
	layer := tarOf(t, rootfs([]byte("ELF"), applets))
	files, err := layout("hearth.local/busybox:1", "amd64", layer)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	for _, f := range files {
		content[f.name] = f.data
	}
	fetch := func(d descriptor, into any) []byte {
		t.Helper()
		data := content["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); got != d.Digest || len(data) != d.Size {
			t.Fatalf("blob %s: has digest %s and %d bytes", d.Digest, got, len(data))
		}
		if into != nil {
			if err := json.Unmarshal(data, into); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	var top index
	if err := json.Unmarshal(content["index.json"], &top); err != nil {
		t.Fatal(err)
	}
	if got := top.Manifests[0].Annotations["io.containerd.image.name"]; got != "hearth.local/busybox:1" {
		t.Errorf("image name %q", got)
	}
	var m manifest
	fetch(top.Manifests[0], &m)
	var config image
	fetch(m.Config, &config)
	if !bytes.Equal(fetch(m.Layers[0], nil), layer) {
		t.Error("the layer is not the one that was given")
	}
	if config.RootFS.DiffIDs[0] != m.Layers[0].Digest {
		t.Error("an uncompressed layer's diff id must be its digest")
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

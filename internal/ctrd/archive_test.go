package ctrd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"testing"
)

type blob struct {
	digest string
	data   []byte
}

func newBlob(data []byte) blob {
	sum := sha256.Sum256(data)
	return blob{"sha256:" + hex.EncodeToString(sum[:]), data}
}

func jsonBlob(t testing.TB, v any) blob {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return newBlob(b)
}

func tarOf(t testing.TB, dirs []string, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range dirs {
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ociArchive makes an image of one layer by hand (OCI image-spec v1.1,
// image-layout.md). fill adds that many bytes of noise.
func ociArchive(t testing.TB, ref string, fill []byte) []byte {
	t.Helper()
	layer := newBlob(tarOf(t, []string{"etc", "mnt", "tmp", "root"}, map[string][]byte{"etc/lower": []byte("lower\n"), "fill": fill}))
	config := jsonBlob(t, map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin", "FROM=image", "IMAGE=1"}, "Entrypoint": []string{"/entry"}, "Cmd": []string{"arg"}, "User": "1000", "WorkingDir": "/root"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.digest}},
	})
	manifest := jsonBlob(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": len(config.data)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": len(layer.data)}},
	})
	index := map[string]any{
		"schemaVersion": 2,
		"manifests": []any{map[string]any{
			"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest.digest, "size": len(manifest.data),
			"platform":    map[string]any{"architecture": "amd64", "os": "linux"},
			"annotations": map[string]string{"org.opencontainers.image.ref.name": ref},
		}},
	}
	if ref == "" {
		delete(index["manifests"].([]any)[0].(map[string]any), "annotations")
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": jsonBlob(t, index).data}
	for _, b := range []blob{layer, config, manifest} {
		files["blobs/sha256/"+b.digest[len("sha256:"):]] = b.data
	}
	return tarOf(t, []string{"blobs", "blobs/sha256"}, files)
}

// withoutLayer is the archive without the largest of its files.
func withoutLayer(t testing.TB, archive []byte) []byte {
	t.Helper()
	files := map[string][]byte{}
	largest := ""
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if len(files[h.Name]) > len(files[largest]) {
			largest = h.Name
		}
	}
	delete(files, largest)
	return tarOf(t, []string{"blobs", "blobs/sha256"}, files)
}

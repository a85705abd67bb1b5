package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// writeSandboxImage writes an image of one static program as an archive in the
// OCI image layout (image specification 1.1), without a registry.
func writeSandboxImage(path, program, name string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read sandbox program: %w", err)
	}
	layer, err := archive([]file{{"pause", 0o755, binary}})
	if err != nil {
		return err
	}
	var files []file
	blob := func(mediaType string, data []byte) object {
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		files = append(files, file{"blobs/sha256/" + sum, 0o644, data})
		return object{"mediaType": "application/vnd.oci.image." + mediaType, "digest": "sha256:" + sum, "size": len(data)}
	}
	document := func(mediaType string, v object) (object, error) {
		data, err := json.Marshal(v)
		return blob(mediaType, data), err
	}
	layerBlob := blob("layer.v1.tar", layer)
	config, err := document("config.v1+json", object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Entrypoint": []string{"/pause"}},
		"rootfs": object{"type": "layers", "diff_ids": []any{layerBlob["digest"]}},
	})
	if err != nil {
		return err
	}
	manifest, err := document("manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []object{layerBlob},
	})
	if err != nil {
		return err
	}
	manifest["annotations"] = object{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	index, err := json.Marshal(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []object{manifest},
	})
	if err != nil {
		return err
	}
	out, err := archive(append(files,
		file{"index.json", 0o644, index}, file{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)}))
	if err != nil {
		return err
	}
	return os.WriteFile(path, out, 0o644)
}

type file struct {
	name string
	mode int64
	data []byte
}

func archive(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

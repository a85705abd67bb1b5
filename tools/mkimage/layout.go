package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sort"
)

// The media types and structures are those of the OCI image specification 1.1:
// image layout, index, manifest and configuration. The layer is not compressed,
// so its digest does not depend on a compressor's version.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type execution struct {
	Env        []string
	Cmd        []string
	WorkingDir string
}

type filesystem struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type image struct {
	platform
	Config execution  `json:"config"`
	RootFS filesystem `json:"rootfs"`
}

// blobs gathers content by digest.
type blobs struct{ files []entry }

func (b *blobs) add(mediaType string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	b.files = append(b.files, entry{name: "blobs/sha256/" + sum, kind: tar.TypeReg, mode: 0o644, data: data})
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
}

func (b *blobs) addJSON(mediaType string, value any) (descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	return b.add(mediaType, data), nil
}

// layout is the image as the members of an OCI image layout.
func layout(ref, arch string, layer []byte) ([]entry, error) {
	target := platform{Architecture: arch, OS: "linux"}
	var store blobs
	layerDescriptor := store.add(typeLayer, layer)
	config, err := store.addJSON(typeConfig, image{
		platform: target,
		Config: execution{
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd:        []string{"/bin/sh"},
			WorkingDir: "/workspace",
		},
		RootFS: filesystem{Type: "layers", DiffIDs: []string{layerDescriptor.Digest}},
	})
	if err != nil {
		return nil, err
	}
	top, err := store.addJSON(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: config, Layers: []descriptor{layerDescriptor},
	})
	if err != nil {
		return nil, err
	}
	top.Platform = &target
	// Importers look for the whole name under either key.
	top.Annotations = map[string]string{
		"io.containerd.image.name":          ref,
		"org.opencontainers.image.ref.name": ref,
	}
	listing, err := json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}})
	if err != nil {
		return nil, err
	}
	files := append(store.files,
		directory("blobs", 0o755),
		directory("blobs/sha256", 0o755),
		file("index.json", 0o644, string(listing)),
		file("oci-layout", 0o644, `{"imageLayoutVersion":"1.0.0"}`),
	)
	sort.Slice(files, func(i, j int) bool { return files[i].name < files[j].name })
	return files, nil
}

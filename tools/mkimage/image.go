package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// spec is what an image is made of.
type spec struct {
	arch       string
	rootfs     []entry
	layer      string // file that has the layer as a tar, in place of rootfs
	entrypoint []string
	cmd        []string
	user       string // uid:gid; empty is root
	workDir    string
	version    string
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// build makes an image of one layer. The layer is not compressed, so its digest
// does not depend on a compressor's version; registries compress as they like.
func build(s spec) (v1.Image, error) {
	layer, err := s.makeLayer()
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{
		Layer:     layer,
		MediaType: types.OCIUncompressedLayer,
		History:   v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: "mkimage"},
	})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", s.arch
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config = v1.Config{
		Env: []string{searchPath}, Entrypoint: s.entrypoint, Cmd: s.cmd, User: s.user, WorkingDir: s.workDir,
	}
	if s.version != "" {
		config.Config.Labels = map[string]string{"org.opencontainers.image.version": s.version}
	}
	return mutate.ConfigFile(img, config)
}

func (s spec) makeLayer() (v1.Layer, error) {
	if s.layer != "" {
		return openLayer(s.layer)
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, s.rootfs); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer), nil
}

// archive is the image as the members of an OCI image layout (image
// specification 1.1), listed once under each name.
func archive(img v1.Image, refs []string) ([]entry, error) {
	files := map[string]entry{}
	add := func(hash v1.Hash, blob entry) {
		blob.name = "blobs/" + hash.Algorithm + "/" + hash.Hex
		blob.kind, blob.mode = tar.TypeReg, 0o644
		files[blob.name] = blob
	}
	if err := addBlobs(img, add); err != nil {
		return nil, err
	}
	top, err := partial.Descriptor(img)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	top.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture}
	listing := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, ref := range refs {
		named := *top
		// Importers look for the whole name under either key.
		named.Annotations = map[string]string{
			"io.containerd.image.name":          ref,
			"org.opencontainers.image.ref.name": ref,
		}
		listing.Manifests = append(listing.Manifests, named)
	}
	index, err := json.Marshal(listing)
	if err != nil {
		return nil, err
	}
	members := []entry{
		directory("blobs", 0o755),
		directory("blobs/sha256", 0o755),
		file("index.json", 0o644, string(index)),
		file("oci-layout", 0o644, `{"imageLayoutVersion":"1.0.0"}`),
	}
	for _, f := range files {
		members = append(members, f)
	}
	sort.Slice(members, func(i, j int) bool { return members[i].name < members[j].name })
	return members, nil
}

// addBlobs gives manifest, configuration and layers of img to add.
func addBlobs(img v1.Image, add func(v1.Hash, entry)) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	add(digest, entry{data: manifest})
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	if digest, err = img.ConfigName(); err != nil {
		return err
	}
	add(digest, entry{data: config})
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if digest, err = layer.Digest(); err != nil {
			return err
		}
		size, err := layer.Size()
		if err != nil {
			return err
		}
		add(digest, entry{open: layer.Compressed, size: size})
	}
	return nil
}

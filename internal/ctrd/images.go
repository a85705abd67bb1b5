package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"

	"hearth/internal/env"
)

// Import reads an OCI archive (a tar of an image layout) and returns the
// references that it names. An image in our namespace is held until it is
// removed there.
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	imgs, err := r.client.Import(r.namespaced(ctx), archive,
		client.WithImageRefTranslator(func(ref string) string { return ref }))
	if err != nil {
		err = r.fail("import image archive", err)
		if !isKnown(err) {
			err = fmt.Errorf("%w: not a readable OCI archive: %w", env.ErrInvalid, err)
		}
		return nil, err
	}
	var refs []string
	for _, i := range imgs {
		if err := r.whole(ctx, i); err != nil {
			return nil, err
		}
		refs = append(refs, i.Name)
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("%w: image archive names no image: set the annotation org.opencontainers.image.ref.name in its index.json", env.ErrInvalid)
	}
	return refs, nil
}

// whole checks that all of an image's content for this platform is here: an archive
// that was cut between two of its files is read without an error. What is not whole
// is removed.
func (r *Runtime) whole(ctx context.Context, img images.Image) error {
	ctx = r.namespaced(ctx)
	there, _, _, missing, err := images.Check(ctx, r.client.ContentStore(), img.Target, platforms.Default())
	if there && err == nil && len(missing) == 0 {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: not a readable OCI archive: image %s lacks %d of its parts; was the archive cut short, or made for another platform?", env.ErrInvalid, img.Name, len(missing))
	} else {
		err = r.fail("check imported image "+img.Name, err)
	}
	if del := r.client.ImageService().Delete(ctx, img.Name, images.SynchronousDelete()); del != nil && !errdefs.IsNotFound(del) {
		err = errors.Join(err, r.fail("remove imported image "+img.Name, del))
	}
	return err
}

// ImportFile imports the archive at path.
func (r *Runtime) ImportFile(ctx context.Context, path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import image archive: %w", err)
	}
	defer func() { _ = f.Close() }()
	refs, err := r.Import(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return refs, nil
}

// Image returns the image that ref names, unpacked. One that is not in our
// namespace is pulled, which needs a full reference (host/name:tag).
func (r *Runtime) Image(ctx context.Context, ref string) (Image, error) {
	ctx = r.namespaced(ctx)
	img, err := r.client.GetImage(ctx, ref)
	if errdefs.IsNotFound(err) {
		if err := r.pull(ctx, ref); err != nil {
			return Image{}, err
		}
		img, err = r.client.GetImage(ctx, ref)
	}
	if err != nil {
		return Image{}, r.fail(fmt.Sprintf("find image %q", ref), err)
	}
	if seen, ok := r.unpacked.Load(img.Target().Digest.String()); ok {
		known := seen.(Image)
		known.Ref = img.Name()
		return known, nil
	}
	return r.unpack(ctx, img)
}

func (r *Runtime) unpack(ctx context.Context, img client.Image) (Image, error) {
	op := fmt.Sprintf("unpack image %q", img.Name())
	done, err := img.IsUnpacked(ctx, r.cfg.Snapshotter)
	if err == nil && !done {
		err = img.Unpack(ctx, r.cfg.Snapshotter)
	}
	if err != nil {
		return Image{}, r.fail(op, err)
	}
	diffs, err := img.RootFS(ctx)
	if err != nil {
		return Image{}, r.fail(op, err)
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return Image{}, r.fail(op, err)
	}
	unpacked := Image{
		Ref:        img.Name(),
		Digest:     img.Target().Digest.String(),
		Env:        spec.Config.Env,
		Entrypoint: spec.Config.Entrypoint,
		Cmd:        spec.Config.Cmd,
		User:       spec.Config.User,
		WorkingDir: spec.Config.WorkingDir,
		chainID:    identity.ChainID(diffs).String(),
	}
	r.unpacked.Store(unpacked.Digest, unpacked)
	return unpacked, nil
}

// pull has containerd's transfer service fetch and unpack ref.
func (r *Runtime) pull(ctx context.Context, ref string) error {
	host, _, ok := strings.Cut(ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return fmt.Errorf("%w: image %q is not on this node; import it (nodeagent image import), or name its registry to have it pulled (host/name:tag)", env.ErrNotFound, ref)
	}
	op := fmt.Sprintf("pull image %q", ref)
	src, err := registry.NewOCIRegistry(ctx, ref, registry.WithHostDir(r.cfg.CertsDir))
	if err != nil {
		return fmt.Errorf("%s: %w: %w", op, env.ErrInvalid, err)
	}
	platform := platforms.DefaultSpec()
	dst := image.NewStore(ref, image.WithPlatforms(platform), image.WithUnpack(platform, r.cfg.Snapshotter))
	err = r.fail(op, r.client.Transfer(ctx, src, dst))
	if err != nil && !isKnown(err) {
		return fmt.Errorf("%w: the registry gives no image; check the reference, the network and %s: %w", env.ErrUnavailable, r.cfg.CertsDir, err)
	}
	return err
}

// isKnown reports whether fail found a sentinel for err.
func isKnown(err error) bool {
	for _, s := range []error{env.ErrUnavailable, env.ErrExhausted, env.ErrNotFound, env.ErrExists} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

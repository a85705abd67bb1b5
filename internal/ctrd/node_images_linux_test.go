package ctrd

import (
	"bytes"
	"testing"

	"github.com/containerd/containerd/v2/core/images"

	"hearth/internal/env"
)

// An operator removes an image that slots were made of, and imports it again: what
// was known of it is no longer so.
func TestNodeAnImageThatCameBackIsUnpackedAgain(t *testing.T) {
	n := startNode(t)
	const ref = "localhost/returns:1"
	ctx := t.Context()
	archive := ociArchive(t, ref, []byte("of its own"))
	prepare := func(img Image) error {
		slot := env.NewSlotID()
		ids := env.IDRange{Base: 1_900_000_000 + n.next.Add(1)*env.IDRangeSize, Size: env.IDRangeSize}
		_, err := n.r.Prepare(ctx, slot, img, ids)
		if err := n.r.Delete(ctx, slot); err != nil {
			t.Error(err)
		}
		return err
	}
	bring := func() {
		if _, err := n.r.Import(ctx, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
	}
	remove := func() {
		if err := n.r.client.ImageService().Delete(n.r.namespaced(ctx), ref, images.SynchronousDelete()); err != nil {
			t.Fatal(err)
		}
	}
	bring()
	img, err := n.r.Image(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := prepare(img); err != nil {
		t.Fatal(err)
	}
	remove()
	bring()
	if err := prepare(img); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	remove()
	if err := prepare(img); err == nil {
		t.Error("a slot was prepared of an image that is gone")
	}
	bring()
	if err := prepare(img); err != nil {
		t.Errorf("after it came back again: %v", err)
	}
	if again, err := n.r.Image(ctx, ref); err != nil || again.Digest != img.Digest || again.chainID != img.chainID {
		t.Errorf("it came back as %+v, %v, was %+v", again, err, img)
	}
}

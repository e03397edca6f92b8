// SPDX-License-Identifier: Apache-2.0

// Package imagetest reads archives of images, for tests.
package imagetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// Files returns the regular files of a tar archive, by name.
func Files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// Open returns the images of an archive by their architectures, and the only entry of the archive's index. Each digest
// of the archive is checked.
func Open(t *testing.T, archive []byte) (map[string]v1.Image, v1.Descriptor) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range Files(t, archive) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("index.json has %d entries, want 1", len(manifest.Manifests))
	}
	images := map[string]v1.Image{}
	if err := collect(index, images); err != nil {
		t.Fatal(err)
	}
	return images, manifest.Manifests[0]
}

func collect(index v1.ImageIndex, images map[string]v1.Image) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		if d.MediaType.IsIndex() {
			nested, err := index.ImageIndex(d.Digest)
			if err != nil {
				return err
			}
			if err := collect(nested, images); err != nil {
				return err
			}
			continue
		}
		image, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		config, err := image.ConfigFile()
		if err != nil {
			return err
		}
		if p := d.Platform; p != nil && p.Architecture != config.Architecture {
			return fmt.Errorf("the index says %s, the image %s", p.Architecture, config.Architecture)
		}
		images[config.Architecture] = image
	}
	return nil
}

// Program writes the only file of the image, which is a program, to a temporary file, and returns the path of the file.
func Program(t *testing.T, image v1.Image) string {
	t.Helper()
	if image == nil {
		t.Fatal("no image for this architecture")
	}
	files := mutate.Extract(image)
	defer files.Close()
	r := tar.NewReader(files)
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	program, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(h.Name))
	if err := os.WriteFile(path, program, h.FileInfo().Mode()); err != nil {
		t.Fatal(err)
	}
	return path
}

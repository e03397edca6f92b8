// SPDX-License-Identifier: Apache-2.0

// Package image makes the driver's container image, which the Dockerfile describes, without a container engine. The
// same programs make the same bytes.
package image

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fsuser-csi/fsuser-csi/release/pack"
)

const (
	// program is the path of the driver in the image.
	program = "fsuser-csi"
	// maxSize is the limit of the program's size, in bytes.
	maxSize = 20 << 20
)

// runConfig returns the configuration of containers of the image. A test compares it with the Dockerfile.
func runConfig(version string) v1.Config {
	return v1.Config{
		Entrypoint: []string{"/" + program},
		Cmd:        []string{"node"},
		Labels: map[string]string{
			"org.opencontainers.image.title": "fsuser-csi",
			"org.opencontainers.image.description": "Secrets and ConfigMaps as files of the user who needs them: " +
				"a CSI node driver for Kubernetes",
			"org.opencontainers.image.source":   "https://github.com/fsuser-csi/fsuser-csi",
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version":  version,
		},
	}
}

// New returns the image of the program at a path. The program must be static, and for Linux.
func New(path, version string) (v1.Image, error) {
	binary, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	image, err := newImage(binary, version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return image, nil
}

func newImage(binary []byte, version string) (v1.Image, error) {
	architecture, err := architectureOf(binary)
	if err != nil {
		return nil, err
	}
	if len(binary) > maxSize {
		return nil, fmt.Errorf("the program has %.1f MiB, the limit is %d MiB", float64(len(binary))/(1<<20), maxSize>>20)
	}
	layer, err := layerOf(binary)
	if err != nil {
		return nil, err
	}
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Created: epoch, Architecture: architecture, OS: "linux", Config: runConfig(version),
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: epoch, CreatedBy: "COPY " + program + " /" + program},
	})
}

// architectureOf returns the name of the architecture in images. A program that requires a dynamic loader is an error,
// because the image has none.
func architectureOf(binary []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return "", fmt.Errorf("not a program for Linux: %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("not a static program: build it with CGO_ENABLED=0 (make build)")
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("a program for %s; images are made for amd64 and arm64", f.Machine)
}

// layerOf returns a layer with only the program. Root owns the program, and every user may execute it.
func layerOf(binary []byte) (v1.Layer, error) {
	content, err := pack.Tar(pack.File{Name: program, Mode: 0o755, Content: binary})
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// ParseName parses the name of an image, repository:tag.
func ParseName(s string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not repository:tag: %w", s, err)
	}
	tagged, ok := named.(reference.NamedTagged)
	if _, digested := named.(reference.Digested); !ok || digested {
		return nil, fmt.Errorf("%q is not repository:tag", s)
	}
	return tagged, nil
}

// Archive returns the tar archive of an OCI image layout with one image for each architecture, under one name. With one
// image, the archive also has the manifest for docker without its containerd store.
func Archive(name reference.NamedTagged, images ...v1.Image) ([]byte, error) {
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, err
	}
	annotations := layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          name.String(),
		"org.opencontainers.image.ref.name": name.Tag(),
	})
	if len(images) == 1 {
		err = errors.Join(out.AppendImage(images[0], annotations), addDockerManifest(out, name, images[0]))
	} else {
		err = appendIndex(out, images, annotations)
	}
	if err != nil {
		return nil, err
	}
	return packDir(dir)
}

// appendIndex adds an index of the images, in the order of their architectures.
func appendIndex(out layout.Path, images []v1.Image, options ...layout.Option) error {
	var manifests []mutate.IndexAddendum
	for _, image := range images {
		config, err := image.ConfigFile()
		if err != nil {
			return err
		}
		descriptor := v1.Descriptor{Platform: config.Platform()}
		manifests = append(manifests, mutate.IndexAddendum{Add: image, Descriptor: descriptor})
	}
	slices.SortFunc(manifests, func(a, b mutate.IndexAddendum) int {
		return cmp.Compare(a.Platform.Architecture, b.Platform.Architecture)
	})
	for i := 1; i < len(manifests); i++ {
		if architecture := manifests[i].Platform.Architecture; architecture == manifests[i-1].Platform.Architecture {
			return fmt.Errorf("two programs for %s", architecture)
		}
	}
	return out.AppendIndex(mutate.AppendManifests(empty.Index, manifests...), options...)
}

// addDockerManifest adds manifest.json of `docker save`.
func addDockerManifest(out layout.Path, name reference.Named, image v1.Image) error {
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	blob := func(d v1.Descriptor) string { return "blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex }
	content, err := json.Marshal(tarball.Manifest{{
		Config: blob(manifest.Config), RepoTags: []string{reference.FamiliarString(name)},
		Layers: []string{blob(manifest.Layers[0])},
	}})
	if err != nil {
		return err
	}
	return out.WriteFile("manifest.json", content, 0o644)
}

// packDir returns a tar archive of the files in dir, in the order of their names.
func packDir(dir string) ([]byte, error) {
	var files []pack.File
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, path)
		files = append(files, pack.File{Name: path, Mode: 0o644, Content: content})
		return err
	})
	if err != nil {
		return nil, err
	}
	return pack.Tar(files...)
}

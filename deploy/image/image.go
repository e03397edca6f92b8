// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
)

// program is where the binary is in the image.
const program = "fsuser-csi"

// maxSize is the most that an image may weigh on a node, in bytes.
const maxSize = 20 << 20

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// runConfig is how a container of the image runs. The Dockerfile says the same; a test compares them.
func runConfig(version string) containerConfig {
	return containerConfig{
		Entrypoint: []string{"/" + program},
		Cmd:        []string{"node"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "fsuser-csi",
			"org.opencontainers.image.description": "Secrets and ConfigMaps as files of the user who needs them: a CSI node driver for Kubernetes",
			"org.opencontainers.image.source":      "https://github.com/fsuser-csi/fsuser-csi",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     version,
		},
	}
}

// The JSON of the OCI image specification, as far as this image has it.
type (
	containerConfig struct {
		Entrypoint []string
		Cmd        []string
		Labels     map[string]string
	}
	imageConfig struct {
		Created      string          `json:"created"`
		Architecture string          `json:"architecture"`
		OS           string          `json:"os"`
		Config       containerConfig `json:"config"`
		RootFS       rootFS          `json:"rootfs"`
		History      []history       `json:"history"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	history struct {
		Created   string `json:"created"`
		CreatedBy string `json:"created_by"`
	}
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	// dockerManifest is an entry of manifest.json, of `docker save`.
	dockerManifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
)

// noTime stands for all times in the image, so that they are not part of what it is.
const noTime = "1970-01-01T00:00:00Z"

// image is one for one architecture.
type image struct {
	manifest              descriptor
	configBlob, layerBlob string   // paths in the archive
	blobs                 [][]byte // manifest, config and layer
}

func newImage(path, version string) (image, error) {
	binary, err := os.ReadFile(path)
	if err != nil {
		return image{}, err
	}
	architecture, err := architectureOf(binary)
	if err != nil {
		return image{}, err
	}
	layer, err := layerOf(binary)
	if err != nil {
		return image{}, err
	}
	config, err := json.Marshal(imageConfig{
		Created: noTime, Architecture: architecture, OS: "linux", Config: runConfig(version),
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{digest(layer)}},
		History: []history{{Created: noTime, CreatedBy: "COPY " + program + " /" + program}},
	})
	if err != nil {
		return image{}, err
	}
	m, err := json.Marshal(manifest{
		SchemaVersion: 2, MediaType: manifestType,
		Config: describe(configType, config), Layers: []descriptor{describe(layerType, layer)},
	})
	if err != nil {
		return image{}, err
	}
	if size := len(m) + len(config) + len(layer); size > maxSize {
		return image{}, fmt.Errorf("the image would have %.1f MiB; the most is %d", float64(size)/(1<<20), maxSize>>20)
	}
	d := describe(manifestType, m)
	d.Platform = &platform{Architecture: architecture, OS: "linux"}
	return image{manifest: d, configBlob: blobPath(config), layerBlob: blobPath(layer), blobs: [][]byte{m, config, layer}}, nil
}

// architectureOf is the name that images have for it. There is no loader in the image, so the binary must need none.
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

// layerOf is the one layer: the binary, root's, that everybody may execute. Not compressed: what compresses may change with Go.
func layerOf(binary []byte) ([]byte, error) {
	return pack([]file{{program, 0o755, binary}})
}

// archive is an OCI layout, and what docker needs beside it.
func archive(name reference, images []image) ([]byte, error) {
	slices.SortFunc(images, func(a, b image) int {
		return cmp.Compare(a.manifest.Platform.Architecture, b.manifest.Platform.Architecture)
	})
	content := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for i, one := range images {
		if i > 0 && images[i-1].manifest.Platform.Architecture == one.manifest.Platform.Architecture {
			return nil, fmt.Errorf("two binaries for %s", one.manifest.Platform.Architecture)
		}
		for _, blob := range one.blobs {
			content[blobPath(blob)] = blob
		}
	}

	top := images[0].manifest
	if len(images) > 1 {
		all := index{SchemaVersion: 2, MediaType: indexType}
		for _, one := range images {
			all.Manifests = append(all.Manifests, one.manifest)
		}
		blob, err := json.Marshal(all)
		if err != nil {
			return nil, err
		}
		content[blobPath(blob)] = blob
		top = describe(indexType, blob)
	} else {
		docker, err := json.Marshal([]dockerManifest{{Config: images[0].configBlob, RepoTags: []string{name.String()}, Layers: []string{images[0].layerBlob}}})
		if err != nil {
			return nil, err
		}
		content["manifest.json"] = docker
	}
	top.Annotations = map[string]string{
		"io.containerd.image.name":          name.full(),
		"org.opencontainers.image.ref.name": name.tag,
	}
	entry, err := json.Marshal(index{SchemaVersion: 2, MediaType: indexType, Manifests: []descriptor{top}})
	if err != nil {
		return nil, err
	}
	content["index.json"] = entry

	var files []file
	for path, b := range content {
		files = append(files, file{path, 0o644, b})
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return pack(files)
}

type file struct {
	path    string
	mode    int64
	content []byte
}

// pack makes a tar archive of which nothing depends on when, where or by whom it is made.
func pack(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.content)), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func describe(mediaType string, blob []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digest(blob), Size: len(blob)}
}

func digest(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobPath(blob []byte) string { return "blobs/sha256/" + digest(blob)[len("sha256:"):] }

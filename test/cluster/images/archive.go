// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build writes the image's tar to a path. At any time, the path has no file or a complete one. The folder must exist.
func Build(path string, image Image) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make image %s: %w", image.Name, err)
		}
	}()
	if image.Name == "" {
		return fmt.Errorf("no name")
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	layer := filepath.Join(dir, "layer.tar")
	digest, err := writeLayer(layer, image)
	if err != nil {
		return err
	}
	whole := filepath.Join(dir, "image.tar")
	if err := writeArchive(whole, image, layer, digest); err != nil {
		return err
	}
	return os.Rename(whole, path)
}

// writeLayer writes the layer and returns the hex SHA-256 digest of the tar.
func writeLayer(path string, image Image) (digest string, err error) {
	entries, err := image.entries()
	if err != nil {
		return "", err
	}
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	w := tar.NewWriter(io.MultiWriter(file, hash))
	for _, e := range entries {
		if err := writeEntry(w, e); err != nil {
			return "", fmt.Errorf("write %s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), file.Close()
}

func writeEntry(w *tar.Writer, e entry) error {
	header := &tar.Header{
		Name:     strings.TrimPrefix(e.Path, "/"),
		Mode:     unixMode(e.Mode),
		Uid:      e.UID,
		Gid:      e.GID,
		ModTime:  time.Unix(0, 0),
		Typeflag: tar.TypeReg,
		Size:     e.size,
	}
	switch {
	case e.Mode.IsDir():
		header.Typeflag, header.Size = tar.TypeDir, 0
		header.Name += "/"
	case e.Symlink != "":
		header.Typeflag, header.Size = tar.TypeSymlink, 0
		header.Linkname = e.Symlink
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	if e.Source == "" {
		_, err := w.Write(e.Content)
		return err
	}
	source, err := os.Open(e.Source)
	if err != nil {
		return err
	}
	defer source.Close()
	_, err = io.Copy(w, source)
	return err
}

func unixMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// writeArchive combines the layer, the configuration and a manifest.
func writeArchive(path string, image Image, layer, digest string) error {
	config, err := json.Marshal(imageConfig(image, digest))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{
		"Config": configName, "RepoTags": []string{image.Name}, "Layers": []string{digest + ".tar"},
	}})
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := tar.NewWriter(file)
	info, err := os.Stat(layer)
	if err != nil {
		return err
	}
	for _, e := range []entry{
		{File: File{Path: "/manifest.json", Mode: 0o644, Content: manifest}, size: int64(len(manifest))},
		{File: File{Path: "/" + configName, Mode: 0o644, Content: config}, size: int64(len(config))},
		{File: File{Path: "/" + digest + ".tar", Mode: 0o644, Source: layer}, size: info.Size()},
	} {
		if err := writeEntry(w, e); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return file.Close()
}

// imageConfig is the image's configuration as Docker and OCI define it.
func imageConfig(image Image, layerDigest string) map[string]any {
	env := image.Env
	if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		env = append([]string{defaultPath}, env...)
	}
	config := map[string]any{"Env": env}
	for key, value := range map[string][]string{"Entrypoint": image.Entrypoint, "Cmd": image.Cmd} {
		if len(value) > 0 {
			config[key] = value
		}
	}
	for key, value := range map[string]string{"User": image.User, "WorkingDir": image.WorkingDir} {
		if value != "" {
			config[key] = value
		}
	}
	return map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC().Format(time.RFC3339),
		"config":       config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerDigest}},
	}
}

// contentKey returns a name for a cached file that depends on the values.
func contentKey(values ...any) (string, error) {
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(values); err != nil {
		return "", err
	}
	sum := sha256.Sum256(text.Bytes())
	return hex.EncodeToString(sum[:8]), nil
}

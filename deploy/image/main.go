// SPDX-License-Identifier: Apache-2.0

// Command image packs static binaries of the driver into a container image, without a container engine: the one that the Dockerfile makes, as a
// tar archive that `docker load`, `podman load`, `ctr images import`, `kind load image-archive` and skopeo read. The same input gives the
// same bytes.
//
//	go run ./deploy/image -o bin/fsuser-csi-image.tar -tag example.com/fsuser-csi:1.2.3 bin/fsuser-csi
//
// With binaries for several architectures the archive is an OCI layout with an index of them, which all of these but docker without
// its containerd store read.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	output := flags.String("o", "bin/fsuser-csi-image.tar", "file to write")
	tag := flags.String("tag", "", "name of the image, with its tag (required)")
	version := flags.String("version", "", "what the label org.opencontainers.image.version says (default: the tag)")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: image [flags] BINARY...")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	name, err := parseReference(*tag)
	if err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	if *version == "" {
		*version = name.tag
	}
	if flags.NArg() == 0 {
		return errors.New("no binary is named")
	}
	var images []image
	for _, path := range flags.Args() {
		one, err := newImage(path, *version)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		images = append(images, one)
	}
	archive, err := archive(name, images)
	if err != nil {
		return err
	}
	return writeFile(*output, archive)
}

// writeFile writes the file whole or not at all.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// reference is an image's name as a user writes it.
type reference struct{ repository, tag string }

func parseReference(s string) (reference, error) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || i == len(s)-1 || strings.ContainsAny(s[i:], "/@") || strings.ContainsAny(s, " \t\n@") || s != strings.ToLower(s[:i])+s[i:] {
		return reference{}, fmt.Errorf("%q is not repository:tag", s)
	}
	return reference{s[:i], s[i+1:]}, nil
}

// String is the name as it was written.
func (r reference) String() string { return r.repository + ":" + r.tag }

// full is the name with what docker and kubelet understand if it is left out.
func (r reference) full() string {
	first, _, slash := strings.Cut(r.repository, "/")
	switch {
	case !slash:
		return "docker.io/library/" + r.String()
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		return "docker.io/" + r.String()
	}
	return r.String()
}

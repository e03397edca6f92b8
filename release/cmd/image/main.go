// SPDX-License-Identifier: Apache-2.0

// Command image packs static programs of the driver, one for each architecture, into an archive of the driver's image
// (make image). docker, podman, ctr, kind and skopeo read the archive. docker without its containerd store reads
// archives with one architecture only.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/fsuser-csi/fsuser-csi/release/image"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	output := flags.String("o", "fsuser-csi-image.tar", "`file` to write")
	tag := flags.String("tag", "", "name of the image, `repository:tag` (required)")
	version := flags.String("version", "", "version in the labels of the image (default: the tag)")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: image [flags] PROGRAM...")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	name, err := image.ParseName(*tag)
	if err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	if *version == "" {
		*version = name.Tag()
	}
	if flags.NArg() == 0 {
		return errors.New("no program is named")
	}
	var images []v1.Image
	for _, path := range flags.Args() {
		one, err := image.New(path, *version)
		if err != nil {
			return err
		}
		images = append(images, one)
	}
	archive, err := image.Archive(name, images...)
	if err != nil {
		return err
	}
	return writeFile(*output, archive)
}

// writeFile writes a complete file, or no file if it fails.
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

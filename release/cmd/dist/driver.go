// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/generate/bin"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rs/zerolog"

	"github.com/fsuser-csi/fsuser-csi/release/image"
)

// driver writes the driver's image for both architectures.
func (d *dist) driver(ctx context.Context) error {
	name, err := image.ParseName(d.repository + ":" + d.appVersion)
	if err != nil {
		return err
	}
	var images []v1.Image
	for _, arch := range []string{"amd64", "arm64"} {
		path, err := d.build(ctx, "fsuser-csi", platform{"linux", arch})
		if err != nil {
			return err
		}
		one, err := image.New(path, d.version)
		if err != nil {
			return err
		}
		images = append(images, one)
	}
	archive, err := image.Archive(name, images...)
	if err != nil {
		return err
	}
	return d.write("fsuser-csi-"+d.fileVersion()+"-image.tar", archive)
}

// sbom returns the modules that are linked into a program, in the JSON of CycloneDX. The command cyclonedx-gomod would
// add the checksum of its own binary, and a serial number. Long package URLs would have this machine's architecture.
func sbom(path, version string) ([]byte, error) {
	generator, err := bin.NewGenerator(path, bin.WithIncludeStdlib(true), bin.WithVersionOverride(version),
		bin.WithShortPURLS(true), bin.WithLogger(zerolog.Nop()))
	if err != nil {
		return nil, err
	}
	bom, err := generator.Generate()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

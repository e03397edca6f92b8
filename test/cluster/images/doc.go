// SPDX-License-Identifier: Apache-2.0

// Package images makes container images without an engine or a registry: tars
// in the docker-archive format with one layer, as `ctr images import` takes
// them. Equal input gives an equal tar.
//
//	files, err := images.WithLibraries(images.FromHost("/usr/bin/env"))
//	...
//	err = images.Build(path, images.Image{Name: "fsuser.test/env:1", Files: files, Cmd: []string{"/usr/bin/env"}})
//
// [Unpack] makes a root file system of Debian packages, for Image.Root.
// [Busybox] and [Pause] are ready images, kept in a cache folder.
package images

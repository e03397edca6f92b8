// SPDX-License-Identifier: Apache-2.0

// Package images makes container images without an engine or a registry: tar files in the docker-archive format with
// one layer, which `ctr images import` accepts. Equal input makes an equal tar.
//
//	files, err := images.WithLibraries(images.FromHost("/usr/bin/env"))
//	...
//	err = images.Build(path, images.Image{Name: "fsuser.test/env:1", Files: files, Cmd: []string{"/usr/bin/env"}})
//
// [Unpack] makes a root file system of Debian packages, for Image.Root. [Busybox] and [Pause] are ready images in a
// cache folder.
package images

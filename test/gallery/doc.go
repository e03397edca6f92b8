// SPDX-License-Identifier: Apache-2.0

// Package gallery runs real programs of Debian packages in pods of a real cluster, with their key in an in-tree secret volume and in one
// of this driver. A program has one script, the same for every volume: only the volume decides whether it refuses, warns or works. The run
// writes docs/gallery.md from what it has seen.
//
//	go run ./test/gallery/run                                  # a cluster, the driver, the gallery, and nothing is left
//	go test -tags e2e -count=1 -timeout=15m -parallel=6 ./test/gallery # in the cluster of KUBECONFIG, where driver and image are
//
// [Image] makes the image. In a cluster the test needs the right to make namespaces, and a node that has the image.
package gallery

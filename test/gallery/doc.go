// SPDX-License-Identifier: Apache-2.0

// Package gallery runs real programs of Debian packages in pods of a real cluster, with their key in an in-tree secret
// volume and in a volume of this driver. A program has the same script for every volume, so only the volume decides
// whether the program refuses, warns or works. The test writes docs/gallery.md with the output of the programs.
//
// The table of programs is also the source of examples/: the pod that the gallery runs with this driver and the pod of
// the example are rendered by one template.
//
//	go run ./test/gallery/run             # a cluster, the driver, the gallery; nothing is left
//	go run ./test/gallery/run -examples   # write examples/
//	go test -tags e2e -count=1 -timeout=15m -parallel=6 ./test/gallery # in the cluster of KUBECONFIG
//
// The third command expects the driver and the images in the cluster.
//
// [Images] makes the images. In a cluster, the test requires the right to create namespaces, and a node with the
// images.
package gallery

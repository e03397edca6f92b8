// SPDX-License-Identifier: Apache-2.0

// Package e2e has the tests of the driver in a real cluster: installed from the shipped manifests, used as a user would.
//
//	go run ./test/e2e/run                 # a cluster of its own, gone afterwards
//	go run ./test/e2e/run -run 'TestE2E/volumes/README'
//
// With KUBECONFIG, IMAGE and POD_IMAGE set it tests that driver image in that cluster, with kubectl and helm from PATH, and installs and
// uninstalls the driver there: it refuses a cluster that has it already. `go run ./test/e2e/run -save <folder>` writes tars of both
// images, to be loaded on the nodes or pushed to a registry.
//
// Folder run is that command, pod the program that the pods of the tests run.
package e2e

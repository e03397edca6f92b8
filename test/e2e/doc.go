// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the driver in a real cluster: installed from the shipped manifests, and used as users do.
//
//	go run ./test/e2e/run                 # a cluster of its own, gone afterwards
//	go run ./test/e2e/run -run 'TestE2E/volumes/README'
//	KUBERNETES=1.35 ACCESS=cluster go run ./test/e2e/run
//
// KUBERNETES is the minor version of the cluster's Kubernetes, and ACCESS the kind of access with which the driver is
// installed: node, namespaces or cluster. The defaults are the newest version and its first kind of access. Parts that
// go through every kind of access, or do not depend on the access, run only with the default of ACCESS.
//
// With KUBECONFIG, IMAGE and POD_IMAGE set, the tests use that cluster and that image of the driver, with kubectl and
// helm from PATH. They install and uninstall the driver, and refuse a cluster in which the driver is installed already.
// The commands of the pages run only in a cluster of the tests' own, whose nodes get the images by the pages' names.
// `go run ./test/e2e/run -save <directory>` writes tars of both images, to load on the nodes or push to a registry.
//
// The directory run has that command, and pod has the program that the pods of the tests run.
package e2e

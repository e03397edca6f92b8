// SPDX-License-Identifier: Apache-2.0

// Package proof has the tests of the test cluster: pods behave in it as in other clusters, and nothing of the cluster
// is left, in whatever way it ends. The tests take minutes, and the first time ten more. So they are not part of `go
// test ./...` but have a build tag:
//
//	go test -tags cluster -count=1 -timeout=60m ./test/cluster/proof
package proof

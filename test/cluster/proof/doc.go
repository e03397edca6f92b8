// SPDX-License-Identifier: Apache-2.0

// Package proof has the tests of the test cluster: that pods do in it what they
// do elsewhere, and that nothing of it stays behind, however it ends. They take
// minutes, and the first time ten more, so they are not part of `go test ./...`
// but have a build tag:
//
//	go test -tags cluster -count=1 -timeout=60m ./test/cluster/proof
package proof

// SPDX-License-Identifier: Apache-2.0

// Package tools has a table of the programs of the test cluster ([Tool]), and the path of each binary.
//
// The programs are built from Go modules, and never downloaded as binaries. Each Tool is a `tool` of a small module of
// its own beside this package (../kubernetes/1.37, ../etcd), so that the dependency graphs of a cluster program and of
// the driver never mix. ../build compiles it into a cache folder that git ignores:
//
//	<cache>/bin/<name>-<version>/<name>
//
// The cache is `.cache` in the repository, or the folder in the environment variable FSUSER_CACHE. Its only key is the
// version: after changing the way in which a tool is built, delete the folder of the tool.
//
// To add a tool, add a `tool` line and a requirement to a module here, and an entry to [All]. The package's test
// compares the two.
package tools

import (
	"fmt"
	"strings"
)

// Tool is one program of the test cluster and how it is built.
type Tool struct {
	Name    string   // the binary's name
	Version string   // of Module, as its go.mod here requires it
	Module  string   // the Go module with the version
	Dir     string   // the folder in test/cluster with the go.mod of this tool
	Package string   // its main package
	Tests   bool     // the program is the tests of Package, which go test runs
	LDFlags []string // for the linker, in addition to -s -w
	Tags    []string // build tags
	Cgo     bool     // whether it requires a C compiler
	Target  string   // the make target that builds it
	Cost    string   // the cost of the first build; later builds use Go's build cache
}

// Lookup returns the tool with this name, for a cluster of this Kubernetes.
func Lookup(k Kubernetes, name string) (Tool, error) {
	all := All(k)
	names := make([]string, len(all))
	for i, t := range all {
		if t.Name == name {
			return t, nil
		}
		names[i] = t.Name
	}
	return Tool{}, fmt.Errorf("look up tool %q: not one of %s", name, strings.Join(names, ", "))
}

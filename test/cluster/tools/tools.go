// SPDX-License-Identifier: Apache-2.0

// Package tools names the programs of the test cluster and says where they are
// once built: a table of [Tool] values and the path of each one's binary.
//
// The programs are built from Go modules, never downloaded. Each Tool is a
// `tool` of a small module of its own beside this package (../kubernetes/1.37,
// ../etcd), so that the dependency graph of a cluster program and the driver's
// never mix, and ../build compiles it into a cache folder that git ignores:
//
//	<cache>/bin/<name>-<version>/<name>
//
// The cache is `.cache` in the repository, or the folder that the environment
// variable FSUSER_CACHE names. It is keyed by version alone: after changing how
// a tool is built, delete its folder.
//
// To add a tool: a `tool` line and a requirement in a module here, then a line
// in [All]. The package's test compares the two.
package tools

import (
	"fmt"
	"strings"
)

// Tool is one program of the test cluster and how it is built.
type Tool struct {
	Name    string   // the binary's name
	Version string   // of Module, as its go.mod here requires it
	Module  string   // the Go module that the version belongs to
	Dir     string   // folder in test/cluster with the go.mod that has this tool
	Package string   // its main package
	Tests   bool     // the program is the tests of Package, which go test runs
	LDFlags []string // for the linker, beside -s -w
	Tags    []string // build tags
	Cgo     bool     // needs a C compiler
	Target  string   // the make target that builds it
	Cost    string   // what the first build takes; later ones find Go's build cache warm
}

// Lookup returns the tool of that name, for a cluster of this Kubernetes.
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

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/e2e"
)

// page is the document of -versions.
const page = "docs/kubernetes-versions.md"

func writePage(all []job) error {
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(repository, page), []byte(document(all)), 0o644)
}

// document returns the page. Two runs differ only if the tests or the versions differ.
func document(all []job) string {
	var d strings.Builder
	d.WriteString(`# Kubernetes versions

<!-- Written by make versions from its results. Do not edit. -->

The end-to-end tests ran in a cluster of each version, built from the Go module of Kubernetes, with
each kind of access that the version allows ([who may read what](../deploy/README.md#who-may-read-what)).
The page is written only if every test of every row passes. The chart refuses a version before
Kubernetes 1.35, because no test ran there.

`)
	d.WriteString("| Kubernetes | access | policies | passed | failed | not in this version | command " +
		"|\n|---|---|---|---:|---:|---:|---|\n")
	for _, j := range all {
		j.row(&d, j.Access, j.Results)
		if j.Access == "namespaces" {
			j.row(&d, "none (`nodePublishSecretRef`)", j.Results.named("nodePublishSecretRef"))
		}
	}
	d.WriteString(`
A row counts the tests and their groups. The first row of each version has, beside the tests of the
other rows, those that start a hundred pods at once, change the access, try what a stolen token can
read, uninstall the driver, and use Helm. The rows "none" have
the test of ` + "`nodePublishSecretRef`" + `, whose namespace has no RoleBinding for the driver. The last row is the
upgrade from an older driver to this one and back ([upgrade](upgrading.md)).

## Not in a version

These tests need a feature that the version lacks. They did not run in its rows.

| Kubernetes | test | feature |
|---|---|---|
`)
	seen := map[string]bool{}
	for _, j := range all {
		for _, e := range j.Results {
			row := fmt.Sprintf("| %s | %s | %s |\n", j.Kubernetes.Version, testName(e),
				strings.TrimPrefix(e.Output, e2e.NotInVersion))
			if e.Action == "skip" && !seen[row] {
				seen[row] = true
				d.WriteString(row)
			}
		}
	}
	return d.String()
}

func (j job) row(d *strings.Builder, access string, r results) {
	fmt.Fprintf(d, "| %s | %s | %s | %d | %d | %d | `%s` |\n", j.Kubernetes.Version, access, j.policies(),
		r.count("pass"), r.count("fail"), r.count("skip"), j.command())
}

// policies names the policies of the run. The tests begin when those of the manifest have effect.
func (j job) policies() string {
	for _, e := range j.Results {
		if e.Action == "skip" && strings.Contains(e.Output, e2e.MutatingPolicies) {
			return "attributes"
		}
	}
	if j.Tests != "" {
		return "attributes, declare-references"
	}
	return "attributes, declare-references, fs-user"
}

// named returns the results of the tests whose name contains a word.
func (r results) named(word string) results {
	var some results
	for _, e := range r {
		if strings.Contains(e.Test, word) {
			some = append(some, e)
		}
	}
	return some
}

func testName(e event) string {
	name := strings.TrimPrefix(e.Test, "TestE2E/")
	return strings.NewReplacer("_", " ", "/", ": ").Replace(name)
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/e2e"
)

const (
	oldest = `{"Action":"output","Test":"TestE2E/compared","Output":"    compare_test.go:9: ` + e2e.NotInVersion +
		`the policy fs-user (` + e2e.MutatingPolicies + `)\n"}
{"Action":"skip","Test":"TestE2E/compared","Elapsed":1}
{"Action":"pass","Test":"TestE2E/volumes/nodePublishSecretRef","Elapsed":1}
{"Action":"pass","Test":"TestE2E","Elapsed":2}
{"Action":"pass","Elapsed":2}
`
	noHelm = `{"Action":"output","Test":"TestE2E/helm","Output":"    there is no helm in PATH\n"}
{"Action":"skip","Test":"TestE2E/helm","Elapsed":1}
`
	failure = `{"Action":"fail","Test":"TestE2E/helm","Elapsed":1}
`
)

func TestCheck(t *testing.T) {
	all, err := jobs()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ output, want string }{
		"a test that the version lacks":             {oldest, ""},
		"a test that is skipped for another reason": {oldest + noHelm, "TestE2E/helm: skip"},
		"a test that fails":                         {oldest + failure, "TestE2E/helm: fail"},
		"no test":                                   {"", "no test passed"},
	} {
		j := all[0]
		if j.Results, err = follow(strings.NewReader(test.output)); err != nil {
			t.Fatal(err)
		}
		err := j.check()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}

func TestDocument(t *testing.T) {
	all, err := jobs()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		output := oldest
		if i > 1 {
			output = strings.ReplaceAll(oldest, "skip", "pass")
		}
		if all[i].Results, err = follow(strings.NewReader(output)); err != nil {
			t.Fatal(err)
		}
	}
	got := document(all)
	for _, want := range []string{
		"| v1.35.4 | namespaces | attributes | 2 | 0 | 1 | `make e2e KUBERNETES=1.35 ACCESS=namespaces` |",
		"| v1.35.4 | none (`nodePublishSecretRef`) | attributes | 1 | 0 | 0 | `make e2e KUBERNETES=1.35 ACCESS=namespaces` |",
		"| v1.36.3 | node | attributes, declare-references, fs-user | 3 | 0 | 0 | `make e2e KUBERNETES=1.36 ACCESS=node` |",
		"| v1.37.2 | node | attributes, declare-references | 3 | 0 | 0 | `make e2e KUBERNETES=1.37 ACCESS=node " +
			"E2E=TestUpgrade` |",
		"| v1.35.4 | compared | the policy fs-user (MutatingAdmissionPolicy v1) |",
	} {
		if strings.Count(got, want+"\n") != 1 {
			t.Errorf("the page has not once the line %s:\n%s", want, got)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// report writes a report and returns its path.
func report(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadReport(t *testing.T) {
	const header = `"SpecialSuiteFailureReasons": [], "SpecReports": [
		{"LeafNodeType": "ReportAfterSuite", "LeafNodeText": "Log Check", "State": "passed"}, `
	got, err := readReport(report(t, `[{`+header+`
		{"ContainerHierarchyTexts": ["[sig-storage] Secrets"], "LeafNodeType": "It",
		 "LeafNodeText": "should be consumable [LinuxOnly] [Conformance]",
		 "LeafNodeLabels": ["Conformance"], "State": "passed",
		 "StartTime": "2026-01-02T03:04:05.6Z", "EndTime": "2026-01-02T03:04:07Z", "SpecEvents": [
			{"Message": "Destroying namespace \"secrets-1\" for this suite."}, {"Message": "Creating the pod"},
			{"Message": "Destroying namespace \"secrets-2\" for this suite."}]},
		{"ContainerHierarchyTexts": ["[sig-storage] ConfigMap"], "LeafNodeType": "It", "LeafNodeText": "skips itself",
		 "State": "skipped",
		 "Failure": {"Message": "not here"}},
		{"ContainerHierarchyTexts": ["[sig-storage] ConfigMap"], "LeafNodeType": "It", "LeafNodeText": "was not selected",
		 "State": "skipped"}]}]`))
	want := []spec{
		{name: "[sig-storage] ConfigMap skips itself", state: "skipped", failure: "not here"},
		{name: "[sig-storage] Secrets should be consumable", labels: []string{"Conformance"}, state: "passed",
			namespaces: []string{"secrets-1", "secrets-2"},
			start:      time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC), end: time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC)},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("specs\n%+v, %v, want\n%+v", got, err, want)
	}
	for name, test := range map[string][2]string{
		"interrupted": {`[{"SpecialSuiteFailureReasons": ["Interrupted"], "SpecReports": []}]`, "Interrupted"},
		"a step failed": {
			`[{"SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite", ` +
				`"State": "failed", "Failure": {"Message": "no node"}}]}]`,
			"no node",
		},
		"none selected": {`[{"SpecReports": []}]`, "no spec was selected"},
		"two suites":    {`[{}, {}]`, "2 suites"},
		"half a report": {`[{`, "unexpected end"},
	} {
		t.Run(name, func(t *testing.T) {
			if specs, err := readReport(report(t, test[0])); err == nil || !strings.Contains(err.Error(), test[1]) {
				t.Errorf("specs %v, error %v, want one with %q", specs, err, test[1])
			}
		})
	}
}

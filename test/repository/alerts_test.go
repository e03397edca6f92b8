// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const alertPages = "docs/alerts"

// TestEachAlertHasItsPage compares the alerts of the chart with the pages in docs/alerts, and with the table of their
// README.
func TestEachAlertHasItsPage(t *testing.T) {
	content, err := os.ReadFile("deploy/chart/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, For          string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(alertPages, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| \[(\w+)\]\((\w+\.md)\) \| (\w+) \|`).FindAllStringSubmatch(string(index), -1)
	var pages []string
	for i, rule := range file.Groups[0].Rules {
		page, severity := rule.Alert+".md", rule.Labels["severity"]
		pages = append(pages, page)
		want := "https://github.com/fsuser-csi/fsuser-csi/blob/main/" + alertPages + "/" + page
		if got := rule.Annotations["runbook_url"]; got != want {
			t.Errorf("%s: the runbook_url is %q, want %q", rule.Alert, got, want)
		}
		if i >= len(rows) || !slices.Equal(rows[i][1:], []string{rule.Alert, page, severity}) {
			t.Errorf("row %d of %s/README.md is not that of %s, %s", i+1, alertPages, rule.Alert, severity)
		}
		checkAlertPage(t, filepath.Join(alertPages, page), rule.Alert, severity, rule.For)
	}
	found, err := filepath.Glob(filepath.Join(alertPages, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if page := filepath.Base(path); page != "README.md" && !slices.Contains(pages, page) {
			t.Errorf("%s is the page of no alert", path)
		}
	}
	if len(rows) != len(pages) || len(pages) < 10 {
		t.Errorf("%d rows and %d alerts were found", len(rows), len(pages))
	}
}

// checkAlertPage checks that the page begins with the alert's name and severity, contains the duration, and has the
// sections of all these pages.
func checkAlertPage(t *testing.T, path, alert, severity, duration string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	head, _, _ := strings.Cut(string(content), "## Meaning")
	minutes := strings.TrimSuffix(duration, "m")
	if !strings.HasPrefix(head, "# "+alert+"\n\nSeverity: "+severity+". ") ||
		duration != "" && !strings.Contains(strings.ReplaceAll(head, "\n", " "), minutes+" minutes") {
		t.Errorf("%s does not begin with the severity %s and the duration %q", path, severity, duration)
	}
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(string(content), -1) {
		sections = append(sections, m[1])
	}
	if !slices.Equal(sections, []string{"Meaning", "Diagnosis", "Mitigation", "Clears"}) {
		t.Errorf("%s has the sections %q", path, sections)
	}
}

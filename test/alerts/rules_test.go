// SPDX-License-Identifier: Apache-2.0

// Package alerts tests the alerts and the dashboard of the chart. rules_test.yaml has unit tests of the alerts with
// their real durations, which promtool runs. With the build tag alerts, a real Prometheus watches real drivers while
// faults happen (make alerts).
package alerts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

const (
	rulesFile     = "../../deploy/chart/files/alerts.yaml"
	dashboardFile = "../../deploy/chart/files/dashboard.json"
	unitTests     = "rules_test.yaml"
	docs          = "../../docs/alerts/README.md"
)

// rulesOf is a file of rules for Prometheus.
type rulesOf struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func readRules(t *testing.T) (rules rulesOf) {
	t.Helper()
	decode(t, rulesFile, &rules)
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) < 10 {
		t.Fatalf("%s has not one group with the alerts", rulesFile)
	}
	return rules
}

func decode(t *testing.T, path string, into any) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(content, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := tools.Path(tools.Newest(), "promtool")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

func TestRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", rulesFile)
	promtool(t, "test", "rules", unitTests)
}

// For each alert, the unit tests have a case in which it fires and one in which it does not. They name no other alert.
func TestEachAlertHasUnitTests(t *testing.T) {
	type result struct{ fires, rests bool }
	results := map[string]result{}
	var file struct {
		RuleFiles          []string `json:"rule_files"`
		EvaluationInterval string   `json:"evaluation_interval"`
		Tests              []struct {
			Name        string           `json:"name"`
			Interval    string           `json:"interval"`
			InputSeries []map[string]any `json:"input_series"`
			Queries     []struct {
				EvalTime string           `json:"eval_time"`
				Expr     string           `json:"expr"`
				Samples  []map[string]any `json:"exp_samples"`
			} `json:"promql_expr_test"`
		} `json:"tests"`
	}
	decode(t, unitTests, &file)
	name := regexp.MustCompile(`alertname="(\w+)"`)
	for _, test := range file.Tests {
		for _, query := range test.Queries {
			for _, alert := range name.FindAllStringSubmatch(query.Expr, -1) {
				r := results[alert[1]]
				r.fires, r.rests = r.fires || len(query.Samples) > 0, r.rests || len(query.Samples) == 0
				results[alert[1]] = r
			}
		}
	}
	for _, rule := range readRules(t).Groups[0].Rules {
		r := results[rule.Alert]
		// An alert without a duration fires at once, so the case without the alert is after the end of its fault.
		if !r.fires || !r.rests {
			t.Errorf("%s: shown to fire: %v, and not to fire: %v", rule.Alert, r.fires, r.rests)
		}
		delete(results, rule.Alert)
	}
	for alert := range results {
		t.Errorf("%s tests the alert %s, which %s does not have", unitTests, alert, rulesFile)
	}
}

// The page's configuration for a Prometheus without the operator is valid.
func TestScrapeConfigOfThePage(t *testing.T) {
	page, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	config := regexp.MustCompile("(?s)```yaml\n(rule_files:.*?)```").FindSubmatch(page)
	if config == nil {
		t.Fatalf("%s has no configuration with rule_files", docs)
	}
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"prometheus.yml": config[1], "alerts.yaml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, "check", "config", filepath.Join(dir, "prometheus.yml"))
}

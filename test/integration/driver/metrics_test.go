// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/fsuser-csi/fsuser-csi/pkg/event"
)

const metricsPage = "../../../docs/metrics.md"

// metrics compares the metrics of a driver with docs/metrics.md, and with Prometheus' conventions. The driver's own pod
// is a pod of the node, so that its access works.
func metrics(t *testing.T, c *cluster) {
	c = c.asNode(t)
	own := c.pod(t, "metrics", ssh("secretName", "metrics"))
	d := c.startAsPod(t, event.Pod{Namespace: own.Namespace, Name: own.Name, UID: own.UID})
	awaitAccess(t, d, 1)
	d.Get("/healthz") // makes a call, so that the metric of calls has a series
	_, text := d.Get("/metrics")

	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}

	comparePage(t, pageOf(t, text))
}

// comparePage compares docs/metrics.md with the metrics, or writes the page.
func comparePage(t *testing.T, page string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(metricsPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	if page != string(old) {
		t.Errorf("docs/metrics.md does not have the metrics of the driver; UPDATE_GOLDEN=1 writes\n%s", page)
	}
}

const metricsHead = `# Metrics

<!-- A test of test/integration/driver writes this page (UPDATE_GOLDEN=1) and compares it. -->

The driver of each node serves these metrics at ` + "`/metrics`" + ` of ` + "`--http-address`" + `, in Prometheus' text
format. [Alerts and dashboard](alerts/README.md) has the queries that show problems, and
[Operations](operations.md#who-can-reach-the-metrics) says who can reach the metrics. Without an API
server (` + "`--manifests`" + `), the metrics of requests, watches, Events and access are absent. Metrics
with the prefixes ` + "`go_` and `process_`" + ` are those of Prometheus' client library for Go.

| metric | type | labels | unit | meaning |
|---|---|---|---|---|
`

// pageOf returns docs/metrics.md for metrics in Prometheus' text format.
func pageOf(t *testing.T, text string) string {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	inMarkdown := strings.NewReplacer("<", "&lt;", "|", `\|`)
	page := metricsHead
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue // The metrics of the client library depend on its version, on Go's and on the kernel.
		}
		f := families[name]
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		page += fmt.Sprintf("| `%s` | %s | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()),
			strings.Join(slices.Sorted(maps.Keys(labels)), ", "), unit(name), inMarkdown.Replace(f.GetHelp()))
	}
	return page
}

// unit returns the unit of a metric, which is the end of its name.
func unit(name string) string {
	name = strings.TrimSuffix(name, "_total")
	for _, u := range []string{"seconds", "bytes", "ratio", "percent"} {
		if strings.HasSuffix(name, "_"+u) {
			return u
		}
	}
	return ""
}

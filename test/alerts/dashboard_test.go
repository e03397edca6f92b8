// SPDX-License-Identifier: Apache-2.0

//go:build alerts

package alerts

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// dashboardJSON has the fields of a Grafana dashboard that this test reads.
type dashboardJSON struct {
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Panels []struct {
		Title, Type string
		Targets     []struct{ Expr string }
	}
}

// dashboard checks that each query of the dashboard returns data while volumes of a node are published, refreshed and
// unpublished, and fail, and that the variables have the job and the node.
func dashboard(t *testing.T, c *cluster) {
	content, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboardJSON
	if err := json.Unmarshal(content, &d); err != nil {
		t.Fatal(err)
	}
	n := c.start(t, "dashboard")
	n.secret(t, "changes", 1)
	n.publish(t, "changes")
	n.secret(t, "comes", 1)
	changes := 0
	again(t, func(ctx context.Context) {
		changes++
		n.change(t, ctx, "changes", changes)
		if err := n.tryPublish(ctx, "missing"); err == nil {
			t.Error("a volume of a missing Secret was published")
		}
		if err := n.tryPublish(ctx, "comes"); err == nil {
			n.unpublish(t, "comes")
		}
	})

	for _, variable := range d.Templating.List {
		label, ok := strings.CutSuffix(variable.Definition, ", "+variable.Name+")")
		if variable.Type != "query" || !ok {
			continue
		}
		series, _ := strings.CutPrefix(label, "label_values(")
		c.awaitData(t, "the variable "+variable.Name, series, model.LabelName(variable.Name))
	}
	queries := 0
	for _, panel := range d.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("the panel %q has no query", panel.Title)
		}
		for _, target := range panel.Targets {
			queries++
			c.awaitData(t, panel.Title, target.Expr, "")
		}
	}
	if queries < 20 {
		t.Errorf("%s has %d queries; has its form changed?", dashboardFile, queries)
	}
}

// change gives the Secret new content.
func (n *node) change(t *testing.T, ctx context.Context, secret string, size int) {
	t.Helper()
	_, err := n.CoreV1().Secrets(namespace).Update(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: n.name + "-" + secret}, Data: map[string][]byte{"key": make([]byte, size)},
	}, metav1.UpdateOptions{})
	if err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

// awaitData waits until a query of the dashboard returns a finite number, from a series that has the label.
func (c *cluster) awaitData(t *testing.T, what, query string, label model.LabelName) {
	t.Helper()
	expr := strings.NewReplacer("$job", job, "$node", "dashboard", "$__rate_interval", "10s").Replace(query)
	if strings.Contains(expr, "$") {
		t.Errorf("%s: the query %s has a variable that the dashboard does not define", what, query)
		return
	}
	testkit.Eventually(t, time.Minute, "data of "+what+": "+expr, func() bool {
		return slices.ContainsFunc(c.query(t, expr), func(s *model.Sample) bool {
			return !math.IsNaN(float64(s.Value)) && !math.IsInf(float64(s.Value), 0) &&
				(label == "" || s.Metric[label] != "")
		})
	})
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/deploy"
)

// counts are metrics of the driver.
type counts struct {
	published int    // the number of volumes published since its start
	held      int    // the number of volumes now
	all       string // the complete metric of operations
}

var (
	publishedMetric = regexp.MustCompile(
		`(?m)^fsuser_volume_operation_duration_seconds_count\{operation="publish",outcome="ok"\} (\d+)$`)
	allMetric  = regexp.MustCompile(`(?m)^fsuser_volume_operation_duration_seconds_count.*$`)
	heldMetric = regexp.MustCompile(`(?m)^fsuser_volumes (\d+)$`)
)

// readCounts reads the metrics of the driver on the only node through the API server.
func readCounts(ctx context.Context, client kubernetes.Interface) (c counts, err error) {
	pods, err := client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return counts{}, fmt.Errorf("read the driver's metrics: %w", err)
	}
	if len(pods.Items) != 1 {
		return counts{}, fmt.Errorf("read the driver's metrics: it has %d pods, want 1", len(pods.Items))
	}
	text, err := client.CoreV1().RESTClient().Get().
		Namespace(deploy.Namespace).Resource("pods").Name(pods.Items[0].Name + ":9808").
		SubResource("proxy").Suffix("metrics").DoRaw(ctx)
	if err != nil {
		return counts{}, fmt.Errorf("read the driver's metrics: %w", err)
	}
	for metric, value := range map[*regexp.Regexp]*int{publishedMetric: &c.published, heldMetric: &c.held} {
		m := metric.FindSubmatch(text)
		if m == nil {
			return counts{}, fmt.Errorf("read the driver's metrics: none matches %s", metric)
		}
		if *value, err = strconv.Atoi(string(m[1])); err != nil {
			return counts{}, fmt.Errorf("read the driver's metrics: %w", err)
		}
	}
	c.all = string(bytes.Join(allMetric.FindAll(text, -1), []byte("\n")))
	return c, nil
}

// compare checks the difference of the driver's metrics before and after the specs. volumes is the number of volumes in
// the pods of the specs.
func compare(before, after counts, volumes int) (problems []string) {
	if counted := after.published - before.published; counted != volumes {
		problems = append(problems, fmt.Sprintf(
			"the driver published %d volumes, and the pods that ran had %d. Before:\n%s\nAfter:\n%s",
			counted, volumes, before.all, after.all))
	}
	if after.held != 0 {
		problems = append(problems, fmt.Sprintf("the driver holds %d volumes after the end of all pods", after.held))
	}
	return problems
}

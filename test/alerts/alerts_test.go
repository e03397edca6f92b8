// SPDX-License-Identifier: Apache-2.0

//go:build alerts

package alerts

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// fault makes an alert fire for its node. The name of the node is the name of the alert in lower case.
type fault struct {
	alert string
	// args are the arguments of the node's driver.
	args []string
	// label is another label in which alerts of this fault differ, with its values.
	label  model.LabelName
	values []model.LabelValue
	// also has the other alerts that the fault can cause.
	also []string
	// begin makes the fault, before which the alert does not fire. The returned function ends the fault, so that the alert
	// clears.
	begin func(t *testing.T, n *node) (end func())
}

// TestAlerts makes a fault for each alert of the chart, on a node of its own, and waits until a real Prometheus has the
// alert, with the expected labels and with annotations that name the node, and until the alert has cleared. The faults
// happen in real drivers with a real API server, except one: kernels since Linux 6.4 have noswap, so an exporter of
// this test serves fsuser_noswap. The durations of the rules are divided by factor.
func TestAlerts(t *testing.T) {
	c := startCluster(t)
	tested := map[string]bool{"FsuserSwappable": true, "FsuserDriverAbsent": true}
	t.Run("nodes", func(t *testing.T) {
		for _, f := range faults() {
			tested[f.alert] = true
			t.Run(f.alert, func(t *testing.T) {
				t.Parallel() // the alerts wait for their durations
				f.test(t, c)
			})
		}
		t.Run("FsuserSwappable", func(t *testing.T) {
			t.Parallel()
			swappable(t, c)
		})
		t.Run("dashboard", func(t *testing.T) {
			t.Parallel()
			dashboard(t, c)
		})
	})
	t.Run("FsuserDriverAbsent", func(t *testing.T) { absent(t, c) })
	for _, rule := range readRules(t).Groups[0].Rules {
		if !tested[rule.Alert] {
			t.Errorf("no fault makes %s fire", rule.Alert)
		}
	}
}

func (f fault) test(t *testing.T, c *cluster) {
	n := c.start(t, strings.ToLower(f.alert), f.args...)
	alerts := []model.LabelSet{{model.AlertNameLabel: model.LabelValue(f.alert), "node": model.LabelValue(n.name)}}
	for i, value := range f.values {
		if i > 0 {
			alerts = append(alerts, alerts[0].Clone())
		}
		alerts[i][f.label] = value
	}
	for _, alert := range alerts {
		if _, fires := c.firing(t, alert); fires {
			t.Errorf("%v fires before the fault", alert)
		}
	}
	end := f.begin(t, n)
	for _, alert := range alerts {
		c.awaitAlert(t, alert)
	}
	end()
	for _, alert := range alerts {
		c.awaitEnd(t, alert)
	}
	for _, sample := range c.query(t, fmt.Sprintf(
		`count by (alertname) (max_over_time(ALERTS{alertstate="firing", node=%q}[1h]))`, n.name)) {
		if name := string(sample.Metric[model.AlertNameLabel]); name != f.alert && !slices.Contains(f.also, name) {
			t.Errorf("the fault made %s fire", name)
		}
	}
}

func faults() []fault {
	return []fault{
		{alert: "FsuserDriverDown", begin: func(t *testing.T, n *node) func() {
			n.Kill()
			return n.StartAgain
		}},
		{alert: "FsuserNotRegistered", begin: func(t *testing.T, n *node) func() {
			n.notify(t, &pluginregistration.RegistrationStatus{Error: "refused by this test"})
			return func() { n.notify(t, &pluginregistration.RegistrationStatus{PluginRegistered: true}) }
		}},
		{alert: "FsuserAccessNotReady", begin: func(t *testing.T, n *node) func() {
			n.refuse(t, reads)
			n.Stop()
			n.StartAgain() // the driver checks its access when it starts
			return func() { n.allow(t, reads) }
		}},
		{alert: "FsuserVolumesStale", begin: func(t *testing.T, n *node) func() {
			n.secret(t, "a", 1)
			n.publish(t, "a")
			n.deleteSecret(t, "a")
			return func() { n.secret(t, "a", 1) }
		}},
		{
			alert: "FsuserPublishFailing", args: []string{"--max-volumes=10", "--pod-share=10", "--max-volume-bytes=1000"},
			label: "reason", values: []model.LabelValue{"not_found", "precondition", "limit"}, begin: failedPublishes,
		},
		{
			alert: "FsuserNodeNearLimit",
			args: []string{
				"--max-volumes=5", "--max-watched-objects=5", "--max-node-bytes=1200000", "--max-open-files=64",
				"--pod-share=100", "--namespace-share=100",
			},
			label:  "limit",
			values: []model.LabelValue{"max-node-bytes", "max-volumes", "max-watched-objects", "max-open-files"},
			begin:  nearLimits,
		},
		// The outage also makes the volume stale, and the driver can't write the Event about that.
		{
			alert: "FsuserWatchesFailing", label: "reason", values: []model.LabelValue{"unavailable"},
			also: []string{"FsuserVolumesStale", "FsuserEventsDropped"},
			begin: func(t *testing.T, n *node) func() {
				n.secret(t, "a", 1)
				n.publish(t, "a")
				n.network.Cut()
				return n.network.Heal
			},
		},
		// This alert clears an hour after the start. In this test, the hour is a minute.
		{alert: "FsuserBadRecords", begin: func(t *testing.T, n *node) func() {
			n.secret(t, "a", 1)
			n.publish(t, "a")
			n.Stop()
			records, err := filepath.Glob(filepath.Join(n.State, "*.json"))
			if err != nil || len(records) != 1 {
				t.Fatalf("the records are %q, %v", records, err)
			}
			if err := os.Truncate(records[0], 10); err != nil {
				t.Fatal(err)
			}
			n.StartAgain()
			return func() {
				if err := n.tryPublish(t.Context(), "a"); err != nil { // as kubelet does every minute
					t.Error(err)
				}
			}
		}},
		// This alert clears an hour after the last dropped Event.
		{alert: "FsuserEventsDropped", also: []string{"FsuserVolumesStale"}, begin: func(t *testing.T, n *node) func() {
			n.refuse(t, writesEvents)
			n.secret(t, "a", 1)
			n.publish(t, "a")
			n.deleteSecret(t, "a") // the driver reports that with an Event
			return func() {
				n.allow(t, writesEvents)
				n.secret(t, "a", 1)
			}
		}},
	}
}

// notify sends the driver the result of its registration, as kubelet does.
func (n *node) notify(t *testing.T, status *pluginregistration.RegistrationStatus) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.Root, "plugins_registry", "fsuser.csi.io-reg.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pluginregistration.NewRegistrationClient(conn).NotifyRegistrationStatus(t.Context(), status); err != nil {
		t.Fatal(err)
	}
}

// failedPublishes repeatedly tries to publish three volumes: one whose Secret is missing, one whose Secret is too
// large, and one that exceeds its pod's share of the node's volumes.
func failedPublishes(t *testing.T, n *node) (end func()) {
	n.secret(t, "first", 1)
	n.publish(t, "first")
	pod, second := n.pod("first")
	second.Name = "second"
	t.Cleanup(func() { // as kubelet does with what it could not publish
		if err := n.Unpublish(context.Background(), pod, second.Name); err != nil {
			t.Error(err)
		}
	})
	n.secret(t, "large", 2000)
	return again(t, func(ctx context.Context) {
		_, tooMany := n.Publish(ctx, pod, second)
		for what, err := range map[string]error{
			"a missing Secret": n.tryPublish(ctx, "missing"), "a large Secret": n.tryPublish(ctx, "large"),
			"the second volume of a pod": tooMany,
		} {
			if err == nil {
				t.Errorf("%s was published", what)
			}
		}
	})
}

// again calls f once a second until the returned function is called, or t ends.
func again(t *testing.T, f func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				f(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	end = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(end)
	return end
}

// nearLimits publishes as many volumes as the node may have, whose content fills most of the node's memory. It then
// connects clients to the CSI socket until the driver has few descriptors left.
func nearLimits(t *testing.T, n *node) (end func()) {
	names := []string{"a", "b", "c", "d", "e"}
	for _, name := range names {
		n.secret(t, name, 100<<10)
		n.publish(t, name)
	}
	var clients []*kubelet.Kubelet
	for n.Metric("process_open_fds") < 0.85*n.Metric("process_max_fds") {
		client, err := kubelet.Connect(n.Root, filepath.Join(n.Root, "plugins", "fsuser.csi.io", "csi.sock"))
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, client)
		if _, err := client.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}); err != nil { // connects
			t.Fatalf("with %d clients: %v", len(clients), err)
		}
	}
	return func() {
		for _, client := range clients {
			client.Close()
		}
		for _, name := range names {
			n.unpublish(t, name)
		}
	}
}

// swappable serves the metric of a driver on a kernel without noswap, and then of one on a kernel with it.
func swappable(t *testing.T, c *cluster) {
	var noswap atomic.Int32
	exporter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "fsuser_noswap %d\n", noswap.Load())
	}))
	t.Cleanup(exporter.Close)
	c.scrape(t, "swappable", exporter.Listener.Addr().String())
	alert := model.LabelSet{model.AlertNameLabel: "FsuserSwappable", "node": "swappable"}
	c.awaitAlert(t, alert)
	noswap.Store(1)
	c.awaitEnd(t, alert)
}

// absent removes all targets, and adds one.
func absent(t *testing.T, c *cluster) {
	alert := model.LabelSet{model.AlertNameLabel: "FsuserDriverAbsent", model.JobLabel: job}
	if _, fires := c.firing(t, alert); fires {
		t.Error("the alert fires while Prometheus has targets")
	}
	c.forget(t)
	c.awaitAlert(t, alert)
	c.start(t, "new")
	c.awaitEnd(t, alert)
}

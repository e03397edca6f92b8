// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// endpoint is the common part of the PodMonitor and the ServiceMonitor.
type endpoint struct {
	Port, Path, Interval string
	Relabelings          []struct {
		SourceLabels             []string
		TargetLabel, Replacement string
	}
}

// Both monitors select the driver's pods by their names, and set the labels that the alerts use.
func TestMonitors(t *testing.T) {
	const more = ".enabled=true,fullnameOverride=full,nameOverride=other,httpPort=1234,metrics."
	for kind, value := range map[string]string{"PodMonitor": "podMonitor", "ServiceMonitor": "serviceMonitor"} {
		objects := template(t, "--set", "metrics."+value+more+value+".labels.release=p,metrics."+value+".interval=30s")
		var monitor struct {
			Spec struct {
				Selector                       struct{ MatchLabels labels.Set }
				PodMetricsEndpoints, Endpoints []endpoint
			}
		}
		object := objects.object(t, kind)
		if err := json.Unmarshal(encode(t, object), &monitor); err != nil {
			t.Fatal(err)
		}
		if object.GetLabels()["release"] != "p" {
			t.Errorf("the labels of the %s are %v", kind, object.GetLabels())
		}
		endpoints := append(monitor.Spec.PodMetricsEndpoints, monitor.Spec.Endpoints...)
		if len(endpoints) != 1 {
			t.Fatalf("the %s has the endpoints %+v", kind, endpoints)
		}
		e := endpoints[0]
		if e.Port != "http" || e.Path != "/metrics" || e.Interval != "30s" || len(e.Relabelings) != 2 ||
			e.Relabelings[0].TargetLabel != "job" || e.Relabelings[0].Replacement != "fsuser-csi" ||
			e.Relabelings[1].TargetLabel != "node" ||
			!slices.Equal(e.Relabelings[1].SourceLabels, []string{"__meta_kubernetes_pod_node_name"}) {
			t.Errorf("the endpoint of the %s is %+v", kind, e)
		}

		var ds appsv1.DaemonSet
		objects.find(t, "DaemonSet", "full", &ds)
		pod := ds.Spec.Template
		selected := labels.Set(pod.Labels)
		if kind == "ServiceMonitor" {
			var service corev1.Service
			objects.find(t, "Service", "full-metrics", &service)
			selected = service.Labels
			port := service.Spec.Ports[0]
			if service.Spec.ClusterIP != corev1.ClusterIPNone || !service.Spec.PublishNotReadyAddresses ||
				port.Name != e.Port || port.Port != 1234 || port.TargetPort.StrVal != pod.Spec.Containers[0].Ports[0].Name ||
				!selects(service.Spec.Selector, pod.Labels) {
				t.Errorf("the Service is\n%s", encode(t, service))
			}
		} else if objects.has("Service") {
			t.Error("there is a Service beside a PodMonitor")
		}
		if !selects(monitor.Spec.Selector.MatchLabels, selected) {
			t.Errorf("the %s selects %v, the labels are %v", kind, monitor.Spec.Selector.MatchLabels, selected)
		}
	}
}

func selects(selector, of labels.Set) bool { return labels.SelectorFromSet(selector).Matches(of) }

// The PrometheusRule has the groups of the file that Prometheus reads without the operator.
func TestPrometheusRule(t *testing.T) {
	object := template(t, "--set", "metrics.prometheusRule.enabled=true,metrics.prometheusRule.labels.release=p").
		object(t, "PrometheusRule")
	content, err := os.ReadFile(filepath.Join("chart", "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := yaml.Unmarshal(content, &want); err != nil {
		t.Fatal(err)
	}
	if got := object.Object["spec"]; !reflect.DeepEqual(got, want) {
		t.Errorf("the PrometheusRule has\n%v, want\n%v", got, want)
	}
	if object.GetLabels()["release"] != "p" {
		t.Errorf("the labels are %v", object.GetLabels())
	}
}

// The ConfigMap has the dashboard's file, where Grafana's sidecar finds it.
func TestGrafanaDashboard(t *testing.T) {
	file, err := os.ReadFile(filepath.Join("chart", "files", "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(file) {
		t.Error("the dashboard is not JSON")
	}
	for set, want := range map[string]struct{ namespace, label, folder string }{
		"": {Namespace, "1", ""},
		",grafanaDashboard.namespace=grafana,grafanaDashboard.annotations.grafana_folder=CSI": {"grafana", "1", "CSI"},
		",grafanaDashboard.labels.grafana_dashboard=storage":                                  {Namespace, "storage", ""},
	} {
		var m corev1.ConfigMap
		template(t, "--set", "grafanaDashboard.enabled=true"+set).find(t, "ConfigMap", "fsuser-csi-dashboard", &m)
		if m.Namespace != want.namespace || m.Labels["grafana_dashboard"] != want.label ||
			m.Annotations["grafana_folder"] != want.folder {
			t.Errorf("with %q the metadata is %+v", set, m.ObjectMeta)
		}
		if m.Data["fsuser-csi.json"] != string(file) {
			t.Errorf("with %q the dashboard is not that of the file", set)
		}
	}
}

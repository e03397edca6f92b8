// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/access"
	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// agent is the node agent. Its fields are the checked flags and the properties of the node.
type agent struct {
	nodeOptions
	binding  driver.Binding
	features tmpfs.Features
	records  *record.Store
	metrics  *prometheus.Registry
}

// run wires the parts together, runs them until ctx ends, and stops them in order.
func (a agent) run(ctx context.Context) error {
	objects, err := a.source()
	if err != nil {
		return err
	}
	defer objects.Close()
	events, runEvents, err := a.events()
	if err != nil {
		return err
	}
	volumes, err := a.volumes(objects, events)
	if err != nil {
		return err
	}
	if err := volumes.Recover(ctx); err != nil {
		return err
	}
	d, err := driver.New(a.driverConfig(volumes))
	if err != nil {
		return err
	}
	checker := access.New(a.accessCheck(objects, events))
	if err := a.metrics.Register(checker); err != nil {
		return err
	}
	stopStatus, err := serveStatus(a.stateDir, func() status.Node {
		return status.Node{Node: a.nodeName, Access: checker.Status(), Volumes: volumes.Status()}
	})
	if err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	defer stopStatus()
	stopHTTP, err := serveHTTP(a.httpAddress, d.Endpoint, d.Ready, a.metrics)
	if err != nil {
		return fmt.Errorf("--http-address: %w", err)
	}
	defer stopHTTP()

	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { volumes.Run(ctx) })
	running.Go(func() { runEvents(ctx) })
	running.Go(func() { checker.Run(ctx) })
	defer running.Wait()
	defer stop()

	warnOfSwap(a.features.NoSwap, "/proc/swaps")
	debug.FreeOSMemory() // The memory for the start is not used again.
	klog.InfoS("Starting", "version", buildVersion(), "node", a.nodeName,
		"noswap", a.features.NoSwap, "selinux", a.selinux())
	err = d.Run(ctx)
	klog.InfoS("Stopped; the volumes stay mounted")
	return err
}

// objects is a source of objects. The caller must close it.
type objects interface {
	volume.Source
	Close()
}

func (a agent) source() (objects, error) {
	if a.manifests != "" {
		return source.NewDirectory(a.manifests)
	}
	config, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	if err := countRequests(a.metrics); err != nil {
		return nil, err
	}
	return source.NewAPI(config, source.Options{
		NodeName: a.nodeName, Impersonate: a.access == accessNode, WatchDuration: a.watchDuration, Metrics: a.metrics,
	})
}

// accessCheck returns the configuration of the check of the driver's access. With access node, the driver reads its own
// pod in the same way as other pods. With access service-account, RBAC may allow reading pods only in namespaces with a
// RoleBinding, which the driver does not know. So the driver reads its Node, which RBAC allows in each installation.
func (a agent) accessCheck(objects volume.Source, events func(event.Event)) access.Config {
	pod := ownPod()
	c := access.Config{Events: events, Pod: pod}
	switch {
	case a.manifests != "":
	case a.access == accessNode && pod != (event.Pod{}):
		c.Read = func(ctx context.Context) error {
			_, err := objects.Pod(ctx, pod.Namespace, pod.Name, pod.UID)
			return err
		}
	case a.access == accessServiceAccount && a.nodeName != "":
		c.Read = func(ctx context.Context) error {
			_, err := objects.Allocatable(ctx)
			return err
		}
	}
	return c
}

// ownPod returns the driver's own pod from the DaemonSet's environment variables. It is empty if one of them is not
// set.
func ownPod() event.Pod {
	pod := event.Pod{Namespace: os.Getenv("POD_NAMESPACE"), Name: os.Getenv("POD_NAME"), UID: os.Getenv("POD_UID")}
	if pod.Namespace == "" || pod.Name == "" || pod.UID == "" {
		return event.Pod{}
	}
	return pod
}

// events returns a function that records an Event, and one that writes recorded Events until its context ends. The
// driver writes Events with its own identity, even with access node, because its right to act as the node does not
// include Events. Without an API server, there are no Events.
func (a agent) events() (record func(event.Event), run func(context.Context), err error) {
	if a.manifests != "" {
		return nil, func(context.Context) {}, nil
	}
	config, err := a.clientConfig()
	if err != nil {
		return nil, nil, err
	}
	client, err := source.NewClient(config)
	if err != nil {
		return nil, nil, err
	}
	recorder := event.New(client, driver.Name, a.nodeName)
	return recorder.Record, recorder.Run, a.metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "fsuser_events_dropped_total", Help: "Events about pods that the driver could not write.",
	}, func() float64 { return float64(recorder.Dropped()) }))
}

func (a agent) volumes(objects volume.Source, events func(event.Event)) (*volume.Manager, error) {
	return volume.New(volume.Config{
		Source: objects, Records: a.records, Features: a.features, SELinuxContext: a.selinux(),
		Limits: volume.Limits{
			Bytes: a.maxVolumeBytes, Files: a.maxVolumeFiles,
			Volumes: a.maxVolumes, NodeBytes: a.maxNodeBytes, Objects: a.maxWatchedObjects,
			PodShare: a.podShare, NamespaceShare: a.namespaceShare,
		},
		Workers: a.refreshWorkers, CollectEvery: a.collectInterval,
		CheckTarget: a.binding.CheckTarget, Metrics: a.metrics, Events: events,
	})
}

func (a agent) driverConfig(volumes driver.Volumes) driver.Config {
	c := driver.Config{
		Version: buildVersion(), NodeID: a.nodeName, Binding: a.binding, Volumes: volumes,
		Endpoint: a.endpoint, MaxMessageBytes: a.maxMessageBytes, Metrics: a.metrics,
	}
	if c.Endpoint == "" {
		c.Endpoint = filepath.Join(a.kubeletRoot, "plugins", driver.Name, "csi.sock")
	}
	if a.register {
		c.RegistrationSocket = filepath.Join(a.kubeletRoot, "plugins_registry", driver.Name+"-reg.sock")
	}
	return c
}

// selinux returns the SELinux context of the files, or "" if SELinux is off.
func (a agent) selinux() string {
	if !a.features.SELinux {
		return ""
	}
	return a.selinuxContext
}

func (a agent) clientConfig() (config *rest.Config, err error) {
	if a.kubeconfig != "" {
		if config, err = clientcmd.BuildConfigFromFlags("", a.kubeconfig); err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
	} else if config, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is no pod of a cluster; set --kubeconfig, or --manifests to go without an API server")
	} else if err != nil {
		return nil, err
	}
	config.UserAgent = "fsuser-csi/" + buildVersion()
	return config, nil
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
)

// pod is a pod of the tests, as the observer has seen it.
type pod struct {
	namespace, name string
	created         time.Time // in whole seconds
	// driver has the mounted volumes of the driver, and inTree those of Kubernetes without the service account's.
	driver, inTree []string
	// started means that a container has run, so all volumes were mounted.
	started  bool
	warnings []string
}

// observer watches all pods and the warnings about them.
type observer struct {
	client kubernetes.Interface
	stop   func() // ends the watches and waits for them

	mu       sync.Mutex
	pods     map[types.UID]*pod
	warnings map[types.UID][]string // by pod
}

// observe starts an observer, and returns when the observer has seen all existing pods and warnings.
func observe(ctx context.Context, client kubernetes.Interface) (*observer, error) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	o := &observer{client: client, pods: map[types.UID]*pod{}, warnings: map[types.UID][]string{}}
	o.stop = func() { cancel(); watching.Wait() }
	core := client.CoreV1().RESTClient()
	pods := cache.NewListWatchFromClient(core, "pods", metav1.NamespaceAll, fields.Everything())
	warnings := fields.OneTermEqualSelector("type", corev1.EventTypeWarning)
	events := cache.NewListWatchFromClient(core, "events", metav1.NamespaceAll, warnings)
	for _, w := range []struct {
		list   *cache.ListWatch
		object runtime.Object
	}{{pods, &corev1.Pod{}}, {events, &corev1.Event{}}} {
		_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: w.list,
			ObjectType:    w.object,
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc:    o.see,
				UpdateFunc: func(_, object any) { o.see(object) },
				DeleteFunc: o.see,
			},
		})
		watching.Go(func() { informer.RunWithContext(ctx) })
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			o.stop()
			return nil, fmt.Errorf("watch pods and events: %w", context.Cause(ctx))
		}
	}
	return o, nil
}

// see stores a pod or an event.
func (o *observer) see(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch object := object.(type) {
	case *corev1.Event:
		uid := object.InvolvedObject.UID
		if !slices.Contains(o.warnings[uid], object.Message) {
			o.warnings[uid] = append(o.warnings[uid], object.Message)
		}
	case *corev1.Pod:
		p := o.pods[object.UID]
		if p == nil {
			p = &pod{namespace: object.Namespace, name: object.Name, created: object.CreationTimestamp.Time}
			p.driver, p.inTree = mounted(object.Spec)
			o.pods[object.UID] = p
		}
		p.started = p.started || started(object.Status)
	}
}

// of returns the pods of a spec, sorted by name. The namespaces of two specs can have the same name, which ends in a
// random number of four digits. So of also compares the time of creation.
func (o *observer) of(s spec) []pod {
	o.mu.Lock()
	defer o.mu.Unlock()
	var pods []pod
	for uid, p := range o.pods {
		during := !p.created.Before(s.start.Truncate(time.Second)) && !p.created.After(s.end)
		if during && slices.Contains(s.namespaces, p.namespace) {
			one := *p
			one.warnings = slices.Clone(o.warnings[uid])
			pods = append(pods, one)
		}
	}
	slices.SortFunc(pods, func(a, b pod) int { return strings.Compare(a.name, b.name) })
	return pods
}

// mounted returns the names of the mounted volumes of the driver, and of those that the policy should have moved behind
// one. A moved volume is also in the pod, but no container mounts it.
func mounted(spec corev1.PodSpec) (ofDriver, inTree []string) {
	mounts := map[string]bool{}
	for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
		for _, m := range c.VolumeMounts {
			mounts[m.Name] = true
		}
	}
	for _, v := range spec.Volumes {
		switch {
		case !mounts[v.Name], strings.HasPrefix(v.Name, "kube-api-access-"):
		case v.CSI != nil && v.CSI.Driver == driver.Name:
			ofDriver = append(ofDriver, v.Name)
		case v.Secret != nil, v.ConfigMap != nil, v.DownwardAPI != nil, v.Projected != nil:
			inTree = append(inTree, v.Name)
		}
	}
	return ofDriver, inTree
}

// started reports whether kubelet made a container. The state of the container is not enough: kubelet also reports the
// state terminated for a container that was never made.
func started(status corev1.PodStatus) bool {
	all := append(slices.Clone(status.InitContainerStatuses), status.ContainerStatuses...)
	return slices.ContainsFunc(all, func(c corev1.ContainerStatus) bool { return c.ContainerID != "" })
}

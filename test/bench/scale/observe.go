// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// observation is the effect of an event on other clients.
type observation struct {
	// waiting is the largest number of requests that waited in the queues of the priority levels of nodes.
	waiting    int
	heartbeats *heartbeats
}

// nodeLevels are the priority levels of the requests of nodes: one for heartbeats, and one for all others.
var nodeLevels = []string{"node-high", "system"}

// observe calls f. In the meantime, and for at least a window, it makes heartbeats and reads the priority levels.
func (p *phases) observe(ctx context.Context, f func(context.Context) error) (*observation, error) {
	o := &observation{heartbeats: p.heartbeats}
	p.heartbeats.reset()
	during, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { p.heartbeats.run(during) })
	running.Go(func() {
		for sleep(during, 50*time.Millisecond) == nil {
			levels, err := p.priorityLevels(during)
			if err != nil {
				continue // The API server is not ready yet.
			}
			waiting := 0
			for _, name := range nodeLevels {
				waiting += levels[name].waiting
			}
			o.waiting = max(o.waiting, waiting)
		}
	})
	window := time.NewTimer(p.size.window)
	defer window.Stop()
	err := f(ctx)
	select {
	case <-window.C:
	case <-ctx.Done():
	}
	stop()
	running.Wait()
	return o, err
}

// The kinds of heartbeats: an update of the node's Lease, and a status of a pod.
const (
	leases = iota
	statuses
	kinds
)

// heartbeats are the requests that kubelet makes in addition to its watches, with the credentials of some nodes.
type heartbeats struct {
	nodes []heartbeatNode

	mu    sync.Mutex
	beats [kinds][]beat
}

type heartbeatNode struct {
	client kubernetes.Interface
	pod    string
	lease  *coordinationv1.Lease
}

// beat is a heartbeat. A failed attempt is repeated, and counts as waiting.
type beat struct{ start, end time.Time }

const (
	heartbeatInterval = 500 * time.Millisecond
	// heartbeatTimeout is the timeout of kubelet's heartbeat client.
	heartbeatTimeout = 10 * time.Second
	// heartbeatNodes is the largest number of nodes with heartbeats. They make as many heartbeats as 200 nodes or more.
	heartbeatNodes = 10
)

func newHeartbeats(ctx context.Context, c *cluster) (*heartbeats, error) {
	h := &heartbeats{}
	for node := range min(c.size.nodes, heartbeatNodes) {
		config, err := c.UserConfig("system:node:"+nodeName(node), "system:nodes")
		if err != nil {
			return nil, err
		}
		config.ContentType, config.Timeout = runtime.ContentTypeProtobuf, heartbeatTimeout
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: nodeName(node)}}
		all := c.admin.CoordinationV1().Leases(corev1.NamespaceNodeLease)
		lease, err = all.Create(ctx, lease, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		h.nodes = append(h.nodes, heartbeatNode{client, podName(node, 0), lease})
	}
	return h, nil
}

func (h *heartbeats) reset() { h.beats = [kinds][]beat{} }

// run makes heartbeats until ctx ends.
func (h *heartbeats) run(ctx context.Context) {
	var running sync.WaitGroup
	for i := range h.nodes {
		for kind, try := range []func(context.Context) error{h.nodes[i].renew, h.nodes[i].report} {
			running.Go(func() {
				for sleep(ctx, heartbeatInterval) == nil {
					b := beat{start: time.Now()}
					for err := try(ctx); err != nil && ctx.Err() == nil; err = try(ctx) {
						_ = sleep(ctx, 10*time.Millisecond)
					}
					b.end = time.Now()
					h.mu.Lock()
					h.beats[kind] = append(h.beats[kind], b)
					h.mu.Unlock()
				}
			})
		}
	}
	running.Wait()
}

func (n *heartbeatNode) renew(ctx context.Context) error {
	now := metav1.NowMicro()
	n.lease.Spec.RenewTime = &now
	leases := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Update(ctx, n.lease, metav1.UpdateOptions{})
	if err == nil {
		n.lease = lease
	} else if apierrors.IsConflict(err) { // The API server was killed between an update and its answer.
		if lease, getErr := leases.Get(ctx, n.lease.Name, metav1.GetOptions{}); getErr == nil {
			n.lease = lease
		}
	}
	return err
}

func (n *heartbeatNode) report(ctx context.Context) error {
	patch := fmt.Appendf(nil, `{"status":{"message":%q}}`, time.Now())
	_, err := n.client.CoreV1().Pods(namespace).Patch(
		ctx, n.pod, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// waits returns the waiting times, in milliseconds, of the heartbeats of a kind that were due in a window. For a
// heartbeat that began before the window, the time counts from the beginning of the window. While a heartbeat waits,
// further ones are due at each interval and wait with it: otherwise a long wait would count less than many short ones.
// Windows of the same length make a short storm comparable with a long one.
func (h *heartbeats) waits(kind int, since time.Time, window time.Duration) (waits []float64) {
	for _, b := range h.beats[kind] {
		if b.start.Before(since) {
			b.start = since
		}
		for due := b.start; due.Before(b.end) && due.Sub(since) < window; due = due.Add(heartbeatInterval) {
			waits = append(waits, b.end.Sub(due).Seconds()*1000)
		}
	}
	return waits
}

// percentile returns the nearest-rank percentile of values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

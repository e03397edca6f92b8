// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// updateInterval is the time between two updates of the shared Secret. A volume is refreshed at most every 100 ms.
const updateInterval = 300 * time.Millisecond

// shared repeatedly updates the Secret that each node shows, and measures the time until the last node has it.
func (p *phases) shared(ctx context.Context) error {
	progress("%s: update a Secret of all nodes", p.fleet.name())
	for range p.size.batches {
		quiet, err := p.cpuWhile(func() error { return sleep(ctx, updates*updateInterval) })
		if err != nil {
			return err
		}
		busy, err := p.cpuWhile(func() error { return p.updateBatch(ctx) })
		if err != nil {
			return err
		}
		p.add(sharedCPUMillis, (busy-quiet).Seconds()*1000/updates)
	}
	if d, ok := p.fleet.(*drivers); ok {
		return p.sharedByMany(ctx, d)
	}
	return nil
}

// updates is the number of updates in a batch.
const updates = 10

func (p *phases) updateBatch(ctx context.Context) error {
	for range updates {
		next := time.After(updateInterval)
		start := time.Now()
		if err := p.updateShared(ctx); err != nil {
			return err
		}
		if err := p.fleet.await(ctx, p.version, func(int) []string { return []string{sharedSecret} }); err != nil {
			return err
		}
		p.add(sharedMillis, time.Since(start).Seconds()*1000)
		<-next
	}
	return nil
}

// sharedByMany updates the Secret while many volumes of each node show it. Kubelet's manager has no counterpart:
// kubelet writes a volume when it synchronizes the pod, which is once a minute.
func (p *phases) sharedByMany(ctx context.Context, d *drivers) error {
	err := p.size.eachNode(func(node int) error { return d.nodes[node].publishShared(ctx, p.size.sharedVolumes) })
	if err != nil {
		return err
	}
	start := time.Now()
	if err := p.updateShared(ctx); err != nil {
		return err
	}
	if err := d.awaitShared(ctx, p.version, p.size.sharedVolumes); err != nil {
		return err
	}
	p.add(sharedByMany, time.Since(start).Seconds()*1000)
	return p.size.eachNode(func(node int) error { return d.nodes[node].unpublishShared(ctx, p.size.sharedVolumes) })
}

// sharedPod returns a pod of a node whose volumes show the shared Secret.
func (n *driverNode) sharedPod() kubelet.Pod {
	return kubelet.Pod{Namespace: namespace, Name: "shared", UID: fmt.Sprintf("shared-%d", n.index)}
}

func (n *driverNode) publishShared(ctx context.Context, volumes int) error {
	for i := range volumes {
		v := kubelet.Volume{Name: volumeName(i), Attributes: attributes(sharedSecret)}
		if _, err := n.Publish(ctx, n.sharedPod(), v); err != nil {
			return n.withLog(fmt.Errorf("publish the shared Secret: %w", err))
		}
	}
	return nil
}

func (n *driverNode) unpublishShared(ctx context.Context, volumes int) error {
	var errs []error
	for i := range volumes {
		// The mount is in the namespace of the node, so the directory is empty here.
		errs = append(errs, n.Unpublish(ctx, n.sharedPod(), volumeName(i)))
	}
	return errors.Join(append(errs, n.RemovePod(n.sharedPod()))...)
}

// awaitShared waits until all volumes of the shared pods have a version.
func (d *drivers) awaitShared(ctx context.Context, version, volumes int) error {
	return lab.Concurrently(len(d.nodes), len(d.nodes), func(node int) error {
		n := d.nodes[node]
		for i := range volumes {
			path := filepath.Join(n.Target(n.sharedPod(), volumeName(i)), versionKey)
			if err := n.awaitFile(ctx, path, strconv.Itoa(version)); err != nil {
				return fmt.Errorf("wait for the shared Secret on node %d: %w", node, err)
			}
		}
		return nil
	})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// pollInterval is the interval of polling.
const pollInterval = 10 * time.Millisecond

// patience is the longest wait for a version of an object. After an outage, kubelet's watches take up to two minutes.
const patience = 5 * time.Minute

// fleet is the clients that watch the objects of all nodes.
type fleet interface {
	name() string
	// start starts the clients of all nodes.
	start(ctx context.Context) error
	// watch makes the clients of all nodes watch their objects, and returns when each client has its objects.
	watch(ctx context.Context) error
	// await waits until the clients have a version of some Secrets of each node.
	await(ctx context.Context, version int, secrets func(node int) []string) error
	// restart restarts the clients of some nodes, which watch their objects again.
	restart(ctx context.Context, nodes []int) error
	close() error
}

func measure(ctx context.Context, o options, s size, dir string, r *results) error {
	progress("create %d nodes with %d Secrets each", s.nodes, s.watches)
	c, err := startCluster(ctx, s, filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	defer c.Stop()
	h, err := newHeartbeats(ctx, c)
	if err != nil {
		return err
	}
	for _, make := range []func() (fleet, error){
		func() (fleet, error) { return newKubelets(c, 0), nil },
		func() (fleet, error) { return newDrivers(c, o.driver) },
	} {
		f, err := make()
		if err != nil {
			return err
		}
		p := &phases{cluster: c, fleet: f, options: o, log: auditLog{path: c.audit}, results: r, heartbeats: h}
		if err := errors.Join(p.run(ctx), f.close()); err != nil {
			return fmt.Errorf("%s: %w", f.name(), err)
		}
	}
	c.Stop()
	if !o.wanted("renew") {
		return nil
	}
	return renew(ctx, o, s, dir, r)
}

// phases measure one fleet.
type phases struct {
	*cluster
	fleet      fleet
	options    options
	log        auditLog
	results    *results
	heartbeats *heartbeats
}

func (p *phases) run(ctx context.Context) error {
	for _, phase := range []struct {
		name string
		run  func(context.Context) error
	}{{"hold", p.hold}, {"shared", p.shared}, {"restart", p.restartAll},
		{"rolling", p.restartTenths}, {"storm", p.outage}} {
		// The first phase starts the watches for the others.
		if phase.name != "hold" && !p.options.wanted(phase.name) {
			continue
		}
		if err := phase.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", phase.name, err)
		}
	}
	return nil
}

func (p *phases) add(m measurement, value float64) { p.results.add(m, p.fleet.name(), value) }

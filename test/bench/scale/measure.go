// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// pollInterval is how often a wait looks at an object.
const pollInterval = 10 * time.Millisecond

// fleet is what watches the objects of all nodes.
type fleet interface {
	name() string
	// start starts the clients of some nodes. Clients that have watched objects watch them again.
	start(ctx context.Context, nodes []int) error
	stop(nodes []int) error
	// watch makes the clients of all nodes watch their objects, and returns when each has its objects.
	watch(ctx context.Context) error
	// await waits until the clients have a version of some Secrets of each node.
	await(ctx context.Context, version int, secrets func(node int) []string) error
	close() error
}

func measure(ctx context.Context, o options, s size, dir string, r *results) error {
	progress("create %d nodes with %d Secrets each", s.nodes, s.watches)
	c, err := startCluster(ctx, s, filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	defer c.Stop()
	for _, make := range []func() (fleet, error){
		func() (fleet, error) { return newKubelets(c, [2]int{}), nil },
		func() (fleet, error) { return newDrivers(c, o.driver) },
	} {
		f, err := make()
		if err != nil {
			return err
		}
		p := &phases{cluster: c, fleet: f, options: o, log: auditLog{path: c.audit}, results: r}
		if err := errors.Join(p.run(ctx), f.close()); err != nil {
			return fmt.Errorf("%s: %w", f.name(), err)
		}
	}
	return nil
}

// phases measure one fleet.
type phases struct {
	*cluster
	fleet   fleet
	options options
	log     auditLog
	results *results
}

func (p *phases) add(what measure_, value float64) { p.results.add(what, p.fleet.name(), value) }

func (p *phases) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{{"hold", p.hold}} {
		if p.options.only != "" && p.options.only != step.name {
			continue
		}
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// restartAll restarts the clients of all nodes at the same time.
func (p *phases) restartAll(ctx context.Context) error {
	progress("%s: restart all at once", p.fleet.name())
	return p.restarting(ctx, restart, [][]int{p.size.all()})
}

// restartTenths restarts the clients of a tenth of the nodes at the same time, and then of the next tenth.
func (p *phases) restartTenths(ctx context.Context) error {
	progress("%s: restart a tenth at a time", p.fleet.name())
	return p.restarting(ctx, rolling, p.size.tenths())
}

func (p *phases) restarting(ctx context.Context, of measurement, groups [][]int) error {
	if err := p.log.mark(); err != nil {
		return err
	}
	start := time.Now()
	var current time.Time
	var cpu time.Duration
	seen, err := p.observe(ctx, func(ctx context.Context) (err error) {
		cpu, err = p.cpuWhile(func() error {
			open := 0
			for _, nodes := range groups {
				if err := p.fleet.restart(ctx, nodes); err != nil {
					return err
				}
				open += len(nodes) * p.size.watches
				if _, err := p.awaitOpen(ctx, open); err != nil {
					return err
				}
			}
			current, err = p.awaitCurrent(ctx)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	all, err := p.log.requests()
	if err != nil {
		return err
	}
	p.addEvent(of, current.Sub(start), cpu, all)
	p.addObserved(of, seen, start)
	return nil
}

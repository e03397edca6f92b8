// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
)

// restart restarts the clients of all nodes at the same time.
func (p *phases) restart(ctx context.Context) error {
	progress("%s: restart all at once", p.fleet.name())
	return p.restarting(ctx, [][]int{p.size.all()}, restartMeasured{
		restartSeconds, restartRequests, restartFailed, restartMillis,
		restartPeakNode, restartPeakAll, restartWaiting, restartLease, restartStatus,
	})
}

// rolling restarts the clients of a tenth of the nodes at the same time, and then of the next tenth.
func (p *phases) rolling(ctx context.Context) error {
	progress("%s: restart a tenth at a time", p.fleet.name())
	return p.restarting(ctx, p.size.tenths(), restartMeasured{
		rollingSeconds, rollingRequests, rollingFailed, rollingMillis,
		rollingPeakNode, rollingPeakAll, rollingWaiting, rollingLease, rollingStatus,
	})
}

// restartMeasured names what is measured of a restart.
type restartMeasured struct {
	seconds, requests, failed, millis, peakNode, peakAll, waiting, lease, status measurement
}

func (p *phases) restarting(ctx context.Context, groups [][]int, m restartMeasured) error {
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
	p.add(m.seconds, current.Sub(start).Seconds())
	p.add(m.requests, float64(len(all))/float64(p.size.count()))
	p.add(m.failed, float64(all.failed()+all.rejected()))
	p.add(m.millis, cpu.Seconds()*1000/float64(p.size.count()))
	p.addPeaks(all, m.peakNode, m.peakAll)
	p.addObserved(seen, start, m.waiting, m.lease, m.status)
	return nil
}

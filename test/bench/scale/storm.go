// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// storm kills the API server, starts it again after a while, and measures the recovery of all watches.
func (p *phases) storm(ctx context.Context) error {
	progress("%s: the API server is away for %v", p.fleet.name(), p.size.outage)
	before, err := failedConnections()
	if err != nil {
		return err
	}
	if err := p.StopAPIServer(ctx); err != nil {
		return err
	}
	if err := p.log.mark(); err != nil {
		return err
	}
	if err := sleep(ctx, p.size.outage); err != nil {
		return err
	}
	after, err := failedConnections()
	if err != nil {
		return err
	}
	p.add(outageAttempts, float64(after-before)/float64(p.size.nodes)/p.size.outage.Seconds())

	progress("%s: the API server returns", p.fleet.name())
	var listening, current time.Time
	seen, err := p.observe(ctx, func(ctx context.Context) error {
		var starting sync.WaitGroup
		starting.Go(func() { listening = p.awaitListening(ctx) })
		err := p.StartAPIServer(ctx)
		starting.Wait()
		if err != nil {
			return err
		}
		current, err = p.awaitCurrent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	cpu, err := p.cpu()
	if err != nil {
		return err
	}
	all, err := p.log.requests()
	if err != nil {
		return err
	}
	progress("%s: answers by code: %v", p.fleet.name(), all.codes())
	p.add(stormSeconds, max(0, current.Sub(listening).Seconds()))
	p.add(stormRequests, float64(len(all))/float64(p.size.count()))
	p.add(stormFailed, float64(all.failed()))
	p.add(stormRejected, float64(all.rejected()))
	p.add(stormCPU, cpu.Seconds())
	p.addPeaks(all, stormPeakNode, stormPeakAll)
	p.addObserved(seen, listening, stormWaiting, stormLease, stormStatus)
	return nil
}

// awaitListening returns when the API server accepts a connection.
func (p *phases) awaitListening(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		conn, err := net.Dial("tcp", p.APIServerAddress())
		if err == nil {
			conn.Close()
			return time.Now()
		}
		_ = sleep(ctx, time.Millisecond)
	}
	return time.Time{}
}

// awaitCurrent updates the samples, and returns the time when each watch is open and the samples are seen.
func (p *phases) awaitCurrent(ctx context.Context) (time.Time, error) {
	if err := p.updateSamples(ctx); err != nil {
		return time.Time{}, err
	}
	if err := p.fleet.await(ctx, p.version, p.size.samples); err != nil {
		return time.Time{}, err
	}
	seen := time.Now()
	opened, err := p.awaitOpen(ctx, p.size.count())
	if opened.Before(seen) {
		opened = seen
	}
	return opened, err
}

// awaitOpen waits until as many watches were opened since the mark, and returns when the last one was.
func (p *phases) awaitOpen(ctx context.Context, watches int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		all, err := p.log.requests()
		if err != nil {
			return time.Time{}, err
		}
		times := all.opened()
		if len(times) >= watches {
			return times[len(times)-1], nil
		}
		if err := sleep(ctx, 250*time.Millisecond); err != nil {
			return time.Time{}, fmt.Errorf("wait for %d watches, of which %d are open: %w", watches, len(times), err)
		}
	}
}

// failedConnections is how many connections of this network namespace were refused so far: AttemptFails of RFC 4022.
func failedConnections() (int, error) {
	text, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "AttemptFails" {
				return strconv.Atoi(fields[i])
			}
		}
	}
	return 0, errors.New("the kernel does not count failed connections")
}

func (p *phases) addPeaks(all requests, node, total measurement) {
	ofNode, ofAll := all.peaks(time.Now())
	p.add(node, float64(ofNode))
	p.add(total, float64(ofAll))
	if p.fleet.name() == driverName && ofNode > maxUnderWay {
		p.results.exceeded = max(p.results.exceeded, ofNode)
	}
}

// maxUnderWay is how many watches a driver starts at the same time.
const maxUnderWay = 16

func (p *phases) addObserved(o *observation, since time.Time, waiting, lease, status measurement) {
	p.add(waiting, float64(o.waiting))
	for kind, m := range map[int]measurement{leases: lease, statuses: status} {
		waits := o.heartbeats.waits(kind, since, p.size.window)
		p.add(m, percentile(waits, 50))
		p.add(m+worst, percentile(waits, 100))
	}
}

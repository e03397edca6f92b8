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

// outage kills the API server, starts it again after a while, and measures the recovery of all watches.
func (p *phases) outage(ctx context.Context) error {
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
	var cpu time.Duration
	seen, err := p.observe(ctx, func(ctx context.Context) (err error) {
		if listening, err = p.startListening(ctx); err != nil {
			return err
		}
		if current, err = p.awaitCurrent(ctx); err != nil {
			return err
		}
		cpu, err = p.cpu()
		return err
	})
	if err != nil {
		return err
	}
	all, err := p.log.requests()
	if err != nil {
		return err
	}
	progress("%s: answers by code: %v", p.fleet.name(), all.codes())
	p.addEvent(storm, current.Sub(listening), cpu, all)
	p.addObserved(storm, seen, listening)
	return nil
}

// addEvent adds the cost of an event. took is the time until all watches were current.
func (p *phases) addEvent(of measurement, took, cpu time.Duration, all requestLog) {
	n := float64(p.size.count())
	p.add(of+seconds, max(0, took.Seconds()))
	p.add(of+requests, float64(len(all))/n)
	p.add(of+failed, float64(all.failed()))
	p.add(of+rejected, float64(all.rejected()))
	p.add(of+millis, cpu.Seconds()*1000/n)
	ofNode, ofAll := all.peaks(time.Now())
	p.add(of+peakNode, float64(ofNode))
	p.add(of+peakAll, float64(ofAll))
	if p.fleet.name() == driverName && ofNode > maxUnderWay {
		p.results.exceeded = max(p.results.exceeded, ofNode)
	}
}

// maxUnderWay is the number of watches that a driver starts at the same time.
const maxUnderWay = 16

// addObserved adds the effect of an event on other clients. The event began at since.
func (p *phases) addObserved(of measurement, o *observation, since time.Time) {
	p.add(of+waiting, float64(o.waiting))
	for kind, m := range []measurement{leases: lease, statuses: status} {
		waits := o.heartbeats.waits(kind, since, p.size.window)
		p.add(of+m, percentile(waits, 50))
		p.add(of+m+longest, percentile(waits, 100))
	}
}

// startListening starts the API server, and returns the time at which the API server began to accept connections.
func (p *phases) startListening(ctx context.Context) (at time.Time, err error) {
	dialing, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		for dialing.Err() == nil {
			conn, err := net.Dial("tcp", p.APIServerAddress())
			if err == nil {
				conn.Close()
				at = time.Now()
				return
			}
			_ = sleep(dialing, time.Millisecond)
		}
	})
	if err = p.StartAPIServer(ctx); err != nil {
		cancel()
	}
	running.Wait()
	return at, err
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

// awaitOpen waits until a number of watches have been opened since the mark, and returns the time of the last one.
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

// failedConnections returns the number of refused connections of this network namespace so far: AttemptFails of RFC
// 4022.
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

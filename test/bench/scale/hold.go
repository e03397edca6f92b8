// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// hold starts a new API server, makes the fleet watch, and measures the cost of the watches while nothing changes.
func (p *phases) hold(ctx context.Context) error {
	progress("%s: a new API server, and idle clients", p.fleet.name())
	if err := p.restartAPIServer(ctx); err != nil {
		return err
	}
	if err := p.fleet.start(ctx); err != nil {
		return err
	}
	idleMemory, err := p.settle(ctx)
	if err != nil {
		return err
	}
	idle, err := p.rates(ctx, p.size.idle)
	if err != nil {
		return err
	}
	progress("%s: %d watches begin", p.fleet.name(), p.size.count())
	if err := p.log.mark(); err != nil {
		return err
	}
	start := time.Now()
	cpu, err := p.cpuWhile(func() error { return p.fleet.watch(ctx) })
	if err != nil {
		return err
	}
	p.add(startSeconds, time.Since(start).Seconds())
	p.add(startMillis, cpu.Seconds()*1000/float64(p.size.count()))
	progress("%s: hold", p.fleet.name())
	heldMemory, err := p.settle(ctx)
	if err != nil {
		return err
	}
	if err := p.keepProfile(ctx, "held"); err != nil {
		return err
	}
	all, err := p.log.requests()
	if err != nil {
		return err
	}
	if opened := len(all.opened()); opened != p.size.count() {
		return fmt.Errorf("%d watches are open, want %d", opened, p.size.count())
	}
	p.add(startRequests, float64(len(all))/float64(p.size.count()))
	p.addMemory(heldMemory, idleMemory)
	p.addLifetime(all)
	held, err := p.rates(ctx, p.size.hold)
	if err != nil {
		return err
	}
	p.add(holdMillis, (held.millis-idle.millis)/float64(p.size.count()))
	p.add(holdBytes, (held.bytes-idle.bytes)/float64(p.size.count()))
	return nil
}

// rates are the CPU time of the API server and the bytes on the loopback interface, per hour.
type rates struct{ millis, bytes float64 }

func (p *phases) rates(ctx context.Context, d time.Duration) (r rates, err error) {
	before, err := loopbackBytes()
	if err != nil {
		return r, err
	}
	cpu, err := p.cpuWhile(func() error { return sleep(ctx, d) })
	if err != nil {
		return r, err
	}
	after, err := loopbackBytes()
	return rates{cpu.Seconds() * 1000 / d.Hours(), (after - before) / d.Hours()}, err
}

// loopbackBytes returns the number of bytes that the loopback interface of this network namespace has received so far.
func loopbackBytes() (n float64, err error) {
	text, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, " lo: %g", &n); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("there is no loopback interface")
}

func (p *phases) addMemory(held, idle memory) {
	kib := 1024 * float64(p.size.count())
	p.add(heapKiB, (held.heap-idle.heap)/kib)
	p.add(stacksKiB, (held.stacks-idle.stacks)/kib)
	p.add(liveKiB, (held.heap+held.stacks-idle.heap-idle.stacks)/kib)
	p.add(residentKiB, (held.resident-idle.resident)/kib)
}

// defaultLifetime is the mean duration of a watch without timeoutSeconds: --min-request-timeout is half an hour, and
// the API server uses a random duration between once and twice this value.
const defaultLifetime = 45 * time.Minute

// addLifetime adds the mean duration of the watches of the fleet.
func (p *phases) addLifetime(all requestLog) {
	var sum float64
	watches := all.watches()
	for _, q := range watches {
		if q.timeout == 0 {
			q.timeout = defaultLifetime.Seconds()
		}
		sum += q.timeout
	}
	p.add(lifetimeMinutes, sum/60/float64(len(watches)))
}

// cpuWhile returns the CPU time of the API server during f.
func (p *phases) cpuWhile(f func() error) (time.Duration, error) {
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return after - before, err
}

func (p *phases) keepProfile(ctx context.Context, name string) error {
	if p.options.keep == "" {
		return nil
	}
	for _, kind := range []string{"heap", "goroutine"} {
		profile, err := p.get(ctx, "/debug/pprof/"+kind)
		if err != nil {
			return err
		}
		if err := p.options.keepFile(p.fleet.name()+"-"+name+"."+kind, profile); err != nil {
			return err
		}
	}
	return nil
}

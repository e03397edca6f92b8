// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"
)

// hold starts a new API server, makes the fleet watch, and measures what the watches cost while nothing happens.
func (p *phases) hold(ctx context.Context) error {
	progress("%s: a new API server, and idle clients", p.fleet.name())
	if err := p.restartAPIServer(ctx); err != nil {
		return err
	}
	if err := p.fleet.start(ctx, p.size.all()); err != nil {
		return err
	}
	idle, err := p.settle(ctx)
	if err != nil {
		return err
	}
	idleCPU, err := p.cpuWhile(func() error { return sleep(ctx, p.size.hold) })
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
	p.add(startCPU, cpu.Seconds()*1000/float64(p.size.count()))
	progress("%s: hold", p.fleet.name())
	held, err := p.settle(ctx)
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
	per := held.minus(idle)
	p.add(liveMemory, per.live/float64(p.size.count())/1024)
	p.add(residentSize, per.resident/float64(p.size.count())/1024)
	holdCPU, err := p.cpuWhile(func() error { return sleep(ctx, p.size.hold) })
	if err != nil {
		return err
	}
	perWatchAndHour := (holdCPU - idleCPU).Seconds() / float64(p.size.count()) * float64(time.Hour) / float64(p.size.hold)
	p.add(holdSeconds, perWatchAndHour*1000)
	return nil
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

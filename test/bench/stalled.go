// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// stalledVolumes is twice the number of volumes that a driver refreshes at the same time.
const stalledVolumes = 8

// besideStalled measures refreshes of healthy volumes while processes hold the directories of other volumes.
type besideStalled struct {
	node             *node
	arrivals         *arrivals
	healthy, stalled group
	// without is measured before the stall, first after the refreshes of the stalled volumes have just begun, and with
	// while all of these hang.
	without, first, with *row
}

// group is a number of volumes, each with an object of its own.
type group struct {
	secrets []*secret
	volumes []*volume
}

func refreshBesideStalled(s size) series {
	of := fmt.Sprintf("refresh, one of %d volumes", s.burst)
	without := &row{what: of + ": PUT returned -> new bytes", unit: milliseconds}
	first := &row{what: fmt.Sprintf("%s, at the moment when %d others stall", of, stalledVolumes), unit: milliseconds}
	with := &row{
		what: fmt.Sprintf("%s, %d others stalled", of, stalledVolumes), unit: milliseconds,
		yardstick: without, goal: goal{p99Ratio: 2},
	}
	return series{[]*row{without, first, with}, func(ctx context.Context, e *env) (step, error) {
		b, err := newBesideStalled(ctx, e)
		if err != nil {
			return nil, err
		}
		b.without, b.first, b.with = without, first, with
		return func(ctx context.Context) error {
			for range e.size.bursts {
				if err := b.turn(ctx); err != nil {
					return err
				}
			}
			b.arrivals.close()
			return errors.Join(b.node.unpublishMany(ctx, b.healthy.volumes), b.node.unpublishMany(ctx, b.stalled.volumes))
		}, nil
	}}
}

// newBesideStalled starts a driver that no other row measures.
func newBesideStalled(ctx context.Context, e *env) (*besideStalled, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, err
	}
	var b besideStalled
	if b.node, err = e.startWithAPI(ctx); err != nil {
		return nil, err
	}
	for prefix, of := range map[string]struct {
		*group
		n int
	}{"healthy": {&b.healthy, e.size.burst}, "stalled": {&b.stalled, stalledVolumes}} {
		if of.secrets, err = c.createMany(ctx, e.name(prefix), of.n); err != nil {
			return nil, err
		}
		if of.volumes, err = b.node.publishMany(ctx, objectNames(of.secrets)); err != nil {
			return nil, err
		}
	}
	b.arrivals, err = e.watchArrivals(append(b.healthy.volumes, b.stalled.volumes...)...)
	return &b, err
}

// turn measures each healthy volume without stalled volumes and with them, and waits until the stalled ones are
// current.
func (b *besideStalled) turn(ctx context.Context) error {
	if err := b.refreshAll(ctx, b.without); err != nil {
		return err
	}
	if err := b.whileStalled(ctx); err != nil {
		return err
	}
	_, err := b.arrivals.await(ctx, b.stalled.secrets[0].current(), b.stalled.volumes...)
	return err
}

func (b *besideStalled) whileStalled(ctx context.Context) (err error) {
	for _, v := range b.stalled.volumes {
		release, stallErr := testkit.StartStall(v.request.GetTargetPath())
		if stallErr != nil {
			return stallErr
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	for _, s := range b.stalled.secrets {
		if err := s.update(ctx); err != nil {
			return err
		}
	}
	if err := b.refresh(ctx, 0, b.first); err != nil {
		return err
	}
	if err := b.awaitHanging(ctx); err != nil {
		return err
	}
	return b.refreshAll(ctx, b.with)
}

func (b *besideStalled) refreshAll(ctx context.Context, took *row) error {
	for i := range b.healthy.secrets {
		if err := b.refresh(ctx, i, took); err != nil {
			return err
		}
	}
	return nil
}

func (b *besideStalled) refresh(ctx context.Context, i int, took *row) error {
	var unmeasured row
	return b.arrivals.refresh(ctx, b.healthy.secrets[i], b.healthy.volumes[i], &unmeasured, took)
}

// awaitHanging waits until a thread of the driver hangs in each of the stalled volumes.
func (b *besideStalled) awaitHanging(ctx context.Context) error {
	for {
		n, err := testkit.HangingThreads(b.node.pid)
		if err != nil || n >= stalledVolumes {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d refreshes hang, of %d stalled volumes: %w", n, stalledVolumes, context.Cause(ctx))
		}
	}
}

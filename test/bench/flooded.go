// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// floodBytes is the size of the Secret that is updated without end. The API server accepts 1 MiB of data.
const floodBytes = 1<<20 - 8<<10

// refreshInFlood measures refreshes of one volume while the Secret of many other volumes in the same namespace is
// updated without end.
func refreshInFlood(s size) series {
	without := &row{what: "refresh, one volume: PUT returned -> new bytes, before the flood", unit: milliseconds}
	with := &row{
		what: fmt.Sprintf("refresh, while a Secret of 1 MiB in %d other volumes is updated without end", s.flooded),
		unit: milliseconds, yardstick: without,
	}
	return series{[]*row{without, with}, func(ctx context.Context, e *env) (step, error) {
		c, err := e.newCluster(ctx)
		if err != nil {
			return nil, err
		}
		n, err := e.startWithAPI(ctx)
		if err != nil {
			return nil, err
		}
		quiet, err := c.create(ctx, e.name("quiet"))
		if err != nil {
			return nil, err
		}
		busy, err := c.createPadded(ctx, e.name("busy"), floodBytes)
		if err != nil {
			return nil, err
		}
		names := []string{quiet.name}
		for range s.flooded {
			names = append(names, busy.name)
		}
		volumes, err := n.publishMany(ctx, names)
		if err != nil {
			return nil, err
		}
		a, err := e.watchArrivals(volumes[0])
		if err != nil {
			return nil, err
		}
		measure := func(ctx context.Context, took *row) error {
			for range e.size.burst {
				var unmeasured row
				if err := a.refresh(ctx, quiet, volumes[0], &unmeasured, took); err != nil {
					return err
				}
			}
			return nil
		}
		return func(ctx context.Context) error {
			if err := measure(ctx, without); err != nil {
				return err
			}
			flooding, stop := context.WithCancel(ctx)
			var updates sync.WaitGroup
			var flood error
			updates.Go(func() {
				for flooding.Err() == nil && flood == nil {
					flood = busy.update(flooding)
				}
				if flooding.Err() != nil {
					flood = nil
				}
			})
			err := measure(ctx, with)
			stop()
			updates.Wait()
			a.close()
			return errors.Join(err, flood, n.unpublishMany(ctx, volumes))
		}, nil
	}}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// manyVolumes returns the rows about many volumes at once, and the rows that are not durations.
func manyVolumes(s size, y *yardsticks) []series {
	mib := func(what string, g goal) *row { return &row{what: what, unit: mebibytes, goal: g} }
	ms := func(what string, g goal) *row { return &row{what: what, unit: milliseconds, goal: g} }
	return []series{
		memory(
			mib("memory (RSS), idle", goal{p50: 18}),
			mib(fmt.Sprintf("memory (RSS), %d volumes, distinct objects", s.held), goal{p50: 28}),
			mib(fmt.Sprintf("memory (RSS), %d volumes, distinct objects", s.most), goal{p50: 34}),
		),
		binarySize(mib("size of the binary, which is the image", goal{p50: 18})),
		requestsPerVolume(&row{
			what: "API requests per volume: publish, republish, update, unpublish", unit: requests, goal: goal{p50: 2},
		}),
		publishAtOnce(s.burst, ms(fmt.Sprintf("%d publishes at once, distinct objects", s.burst), goal{p50: 300})),
		publishAtOnce(s.most, ms(fmt.Sprintf("%d publishes at once, distinct objects", s.most), goal{p50: 250})),
		updateAtOnce(s.burst,
			ms(fmt.Sprintf("%d Secrets updated at once, %d volumes: last PUT returned -> last bytes", s.burst, s.burst),
				goal{p50: 200})),
		updateShared(s.most, ms(fmt.Sprintf("one Secret in %d volumes: PUT returned -> last bytes", s.most), goal{p50: 100})),
		refreshBesideStalled(s),
		refreshInFlood(s),
	}
}

// crowd is a driver with many volumes, each with an object of its own. It records the memory as the number grows.
type crowd struct {
	node    *node
	cluster *cluster
	volumes int
	memory  map[int]usage
}

// newCrowd starts a driver with volumes on its first call.
func (e *env) newCrowd(ctx context.Context) (*crowd, error) {
	return e.crowd.get(func() (*crowd, error) {
		cluster, err := e.newCluster(ctx)
		if err != nil {
			return nil, err
		}
		n, err := e.startWithAPI(ctx)
		if err != nil {
			return nil, err
		}
		c := &crowd{node: n, cluster: cluster, memory: map[int]usage{}}
		if err := c.grow(ctx, 0); err != nil {
			return nil, err
		}
		return c, c.grow(ctx, e.size.held)
	})
}

// grow publishes volumes until there are n, and measures the memory.
func (c *crowd) grow(ctx context.Context, n int) error {
	secrets, err := c.cluster.createMany(ctx, fmt.Sprintf("held-from-%d", c.volumes), n-c.volumes)
	if err != nil {
		return err
	}
	if _, err := c.node.publishMany(ctx, objectNames(secrets)); err != nil {
		return err
	}
	c.volumes = n
	c.memory[n], err = settledMemory(c.node.pid)
	return err
}

func objectNames(secrets []*secret) (names []string) {
	for _, s := range secrets {
		names = append(names, s.name)
	}
	return names
}

func memory(idle, held, most *row) series {
	return series{[]*row{idle, held, most}, func(ctx context.Context, e *env) (step, error) {
		c, err := e.newCrowd(ctx)
		return func(ctx context.Context) error {
			if err := c.grow(ctx, e.size.most); err != nil {
				return err
			}
			for n, r := range map[int]*row{0: idle, e.size.held: held, e.size.most: most} {
				u := c.memory[n]
				r.add(u.rss)
				r.note = fmt.Sprintf("anonymous %.1f, peak RSS %.1f", u.anonymous, u.peak)
			}
			return nil
		}, err
	}}
}

// usage is the memory of a process in MiB, without the tmpfs file systems.
type usage struct{ rss, anonymous, peak float64 }

// settledMemory waits until the memory of a process stops shrinking, and returns it.
func settledMemory(pid int) (least usage, err error) {
	const quiet, patience = 3 * time.Second, 15 * time.Second
	since := time.Now()
	for start := since; time.Since(since) < quiet && time.Since(start) < patience; time.Sleep(100 * time.Millisecond) {
		now, err := memoryOf(pid)
		if err != nil {
			return usage{}, err
		}
		if least.rss == 0 || now.rss < least.rss-0.25 {
			since = time.Now()
		}
		least = now
	}
	return least, nil
}

func memoryOf(pid int) (u usage, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		for field, value := range map[string]*float64{"VmRSS": &u.rss, "RssAnon": &u.anonymous, "VmHWM": &u.peak} {
			var kib float64
			if n, _ := fmt.Sscanf(line, field+": %f kB", &kib); n == 1 {
				*value = kib / 1024
			}
		}
	}
	return u, nil
}

func binarySize(r *row) series {
	return series{[]*row{r}, func(ctx context.Context, e *env) (step, error) {
		path, err := e.driverBinary(ctx)
		return func(context.Context) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			r.add(float64(st.Size()) / (1 << 20))
			return nil
		}, err
	}}
}

// burst returns the starting point of the series with many volumes: a new driver and new objects.
func burst(ctx context.Context, e *env, objects int) (*node, *cluster, []*secret, error) {
	n, err := e.apiNode(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	secrets, err := c.createMany(ctx, e.name("burst"), objects)
	return n, c, secrets, err
}

// requestsPerVolume counts the requests to the API server in the whole life of volumes with an object of their own.
func requestsPerVolume(r *row) series {
	return series{[]*row{r}, func(ctx context.Context, e *env) (step, error) {
		n, c, secrets, err := burst(ctx, e, e.size.burst)
		return func(ctx context.Context) error {
			before, err := c.readsWhenQuiet(ctx)
			if err != nil {
				return err
			}
			volumes, err := n.publishMany(ctx, objectNames(secrets))
			if err != nil {
				return err
			}
			if err := updateAll(ctx, e, volumes, secrets); err != nil {
				return err
			}
			for _, v := range volumes {
				if _, err := n.NodePublishVolume(ctx, v.request); err != nil {
					return err
				}
			}
			if err := n.unpublishMany(ctx, volumes); err != nil {
				return err
			}
			after, err := c.readsWhenQuiet(ctx)
			r.add(float64(after-before) / float64(len(volumes)))
			return err
		}, err
	}}
}

// updateAll updates each object once, and waits until each volume shows the new version.
func updateAll(ctx context.Context, e *env, volumes []*volume, secrets []*secret) error {
	a, err := e.watchArrivals(volumes...)
	if err != nil {
		return err
	}
	defer a.close()
	if err := lab.Concurrently(len(secrets), 8, func(i int) error { return secrets[i].update(ctx) }); err != nil {
		return err
	}
	_, err = a.await(ctx, secrets[0].current(), volumes...)
	return err
}

// publishAtOnce measures the time from the first call to the last answer of parallel calls.
func publishAtOnce(count int, took *row) series {
	return series{[]*row{took}, func(ctx context.Context, e *env) (step, error) {
		n, _, secrets, err := burst(ctx, e, count)
		return func(ctx context.Context) error {
			for range e.size.bursts {
				volumes, err := n.prepareMany(objectNames(secrets))
				if err != nil {
					return err
				}
				start := time.Now()
				err = lab.Concurrently(count, count, func(i int) error {
					_, err := n.NodePublishVolume(ctx, volumes[i].request)
					return err
				})
				took.time(time.Since(start))
				if err := errors.Join(err, n.unpublishMany(ctx, volumes)); err != nil {
					return err
				}
			}
			return nil
		}, err
	}}
}

// updateAtOnce updates many objects, each with a volume, as fast as the API server accepts the updates.
func updateAtOnce(count int, took *row) series {
	return series{[]*row{took}, func(ctx context.Context, e *env) (step, error) {
		n, _, secrets, err := burst(ctx, e, count)
		if err != nil {
			return nil, err
		}
		volumes, err := n.publishMany(ctx, objectNames(secrets))
		if err != nil {
			return nil, err
		}
		a, err := e.watchArrivals(volumes...)
		return func(ctx context.Context) error {
			for range e.size.bursts {
				if err := rest(ctx, refreshInterval, volumes...); err != nil {
					return err
				}
				a.forget()
				if err := lab.Concurrently(count, count, func(i int) error { return secrets[i].update(ctx) }); err != nil {
					return err
				}
				updated := time.Now()
				last, err := a.await(ctx, secrets[0].current(), volumes...)
				if err != nil {
					return err
				}
				took.time(max(0, last.Sub(updated)))
			}
			a.close()
			return n.unpublishMany(ctx, volumes)
		}, err
	}}
}

// updateShared updates one object with many volumes.
func updateShared(count int, took *row) series {
	return series{[]*row{took}, func(ctx context.Context, e *env) (step, error) {
		n, _, secrets, err := burst(ctx, e, 1)
		if err != nil {
			return nil, err
		}
		names := make([]string, count)
		for i := range names {
			names[i] = secrets[0].name
		}
		volumes, err := n.publishMany(ctx, names)
		if err != nil {
			return nil, err
		}
		a, err := e.watchArrivals(volumes...)
		return func(ctx context.Context) error {
			for range e.size.bursts {
				if err := rest(ctx, sharedInterval, volumes...); err != nil {
					return err
				}
				a.forget()
				if err := secrets[0].update(ctx); err != nil {
					return err
				}
				updated := time.Now()
				last, err := a.await(ctx, secrets[0].current(), volumes...)
				if err != nil {
					return err
				}
				took.time(max(0, last.Sub(updated)))
			}
			a.close()
			return n.unpublishMany(ctx, volumes)
		}, err
	}}
}

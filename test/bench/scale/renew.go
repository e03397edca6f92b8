// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// renewal is the longest duration of a watch in the run, and half of it the shortest one. The default is an hour.
const renewal = 20 * time.Second

// renew makes the watches of both fleets end regularly, again and again, and counts the requests and the bytes.
//
// A flag shortens the driver's watches. Kubelet's manager has no such flag, so its transport replaces timeoutSeconds.
func renew(ctx context.Context, o options, s size, dir string, r *results) (err error) {
	s.nodes, s.watches = s.renewNodes, s.renewWatches
	progress("watches end after %v to %v: %d nodes with %d watches", renewal/2, renewal, s.nodes, s.watches)
	c, err := startCluster(ctx, s, filepath.Join(dir, "b"))
	if err != nil {
		return err
	}
	defer c.Stop()
	d, err := newDrivers(c, o.driver, "--watch-duration="+renewal.String())
	if err != nil {
		return err
	}
	fleets := []fleet{d, newKubelets(c, renewal)}
	for _, f := range fleets {
		relay, err := newRelay(c.APIServerAddress())
		if err != nil {
			return err
		}
		if err := c.writeConfigs("https://" + relay.Addr().String()); err != nil {
			return err
		}
		p := &phases{cluster: c, fleet: f, options: o, log: auditLog{path: c.audit}, results: r}
		if err := errors.Join(p.renewals(ctx, relay), f.close(), relay.close()); err != nil {
			return fmt.Errorf("%s: %w", f.name(), err)
		}
	}
	return nil
}

func (p *phases) renewals(ctx context.Context, relay *relay) error {
	if err := p.log.mark(); err != nil {
		return err
	}
	if err := p.fleet.start(ctx); err != nil {
		return err
	}
	if err := p.fleet.watch(ctx); err != nil {
		return err
	}
	if _, err := p.awaitOpen(ctx, p.size.count()); err != nil {
		return err
	}
	if err := p.log.mark(); err != nil {
		return err
	}
	before := relay.bytes.Load()
	if err := sleep(ctx, p.size.renew); err != nil {
		return err
	}
	bytes := relay.bytes.Load() - before
	all, err := p.log.requests()
	if err != nil {
		return err
	}
	renewals := len(all.watches())
	if renewals < p.size.count()/2 {
		return fmt.Errorf("only %d watches of %d were renewed in %v", renewals, p.size.count(), p.size.renew)
	}
	p.add(renewRequests, float64(len(all))/float64(renewals))
	p.add(renewBytes, float64(bytes)/float64(renewals))
	return nil
}

// relay forwards the bytes of connections, and counts them.
type relay struct {
	net.Listener
	to      string
	bytes   atomic.Int64
	running sync.WaitGroup

	mu   sync.Mutex
	open []net.Conn
}

func newRelay(to string) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{Listener: l, to: to}
	r.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.running.Go(func() { r.pass(conn) })
		}
	})
	return r, nil
}

func (r *relay) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	r.open = append(r.open, client, server)
	r.mu.Unlock()
	r.running.Go(func() {
		_, _ = io.Copy(counter{server, &r.bytes}, client)
		server.Close()
	})
	_, _ = io.Copy(counter{client, &r.bytes}, server)
}

func (r *relay) close() error {
	err := r.Listener.Close()
	r.mu.Lock()
	for _, conn := range r.open {
		conn.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
	return err
}

// counter counts written bytes.
type counter struct {
	io.Writer
	bytes *atomic.Int64
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

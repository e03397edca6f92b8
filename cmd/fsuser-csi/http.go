// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"k8s.io/klog/v2"
)

const (
	// maxConnections is the maximum number of connections to --http-address. Each takes a descriptor.
	maxConnections = 64
	// maxScrapes is the maximum number of requests for /metrics at the same time. Others get status 503.
	maxScrapes = 4
	// probeInterval is the minimum time between two probes of the driver's socket. A probe takes two descriptors.
	probeInterval = time.Second
	probeTimeout  = 2 * time.Second
)

// serveHTTP serves /healthz (this process answers CSI calls), /readyz (kubelet has registered the driver, and volumes
// can be published) and /metrics until stop is called. Without an address it serves nothing.
//
// Any pod may be able to reach the address. So connections, their time and the work for them are bounded, and a
// connection serves one request.
func serveHTTP(address, endpoint string, ready func() error, metrics *prometheus.Registry) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("%q would serve on every address of the machine; name one, such as 127.0.0.1 or the "+
			"pod's IP", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", answer((&health{endpoint: endpoint}).check))
	mux.Handle("GET /readyz", answer(ready))
	mux.Handle("GET /metrics", scrape(metrics))
	server := &http.Server{
		Handler: mux, ConnState: new(connections).observe, MaxHeaderBytes: 16 << 10,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second,
	}
	server.SetKeepAlivesEnabled(false)
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "Serving health and metrics ended", "address", address)
		}
	})
	klog.InfoS("Serving health and metrics", "address", listener.Addr().String())
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			server.Close()
		}
		running.Wait()
	}, nil
}

func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// scrape writes metrics in Prometheus' text format, which every scraper reads. promhttp supports other formats and
// compression, but it would add 340 KB to the program.
func scrape(metrics prometheus.Gatherer) http.HandlerFunc {
	running := make(chan struct{}, maxScrapes)
	return func(w http.ResponseWriter, _ *http.Request) {
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			text := fmt.Sprintf("%d other requests for metrics are under way", maxScrapes)
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		families, err := metrics.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
		for _, family := range families {
			if _, err := expfmt.MetricFamilyToText(w, family); err != nil {
				return // The client has closed the connection.
			}
		}
	}
}

// connections are the open connections of a server, the oldest first.
type connections struct {
	mu   sync.Mutex
	open []net.Conn
}

// observe is the ConnState of the server. If there are maxConnections, it closes a connection for a new one: the oldest
// connection of the client with the most connections. So clients with many connections do not block kubelet's probes.
func (c *connections) observe(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.open) == maxConnections {
			victim := c.victim()
			victim.Close()
			c.remove(victim)
		}
		c.open = append(c.open, conn)
	case http.StateClosed:
		c.remove(conn)
	}
}

func (c *connections) victim() net.Conn {
	count := map[string]int{}
	for _, conn := range c.open {
		count[client(conn)]++
	}
	return slices.MaxFunc(c.open, func(a, b net.Conn) int { return count[client(a)] - count[client(b)] })
}

func (c *connections) remove(conn net.Conn) {
	c.open = slices.DeleteFunc(c.open, func(other net.Conn) bool { return other == conn })
}

// client returns the IP address of the other end.
func client(conn net.Conn) string {
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	return host
}

// health is the answer of the driver's own socket, because a process whose listener is dead is not healthy.
type health struct {
	endpoint string

	mu     sync.Mutex
	probed time.Time
	err    error
}

// check returns the result of the last probe if it is younger than probeInterval. Otherwise it probes.
func (h *health) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.probed) >= probeInterval {
		h.err = probe(h.endpoint)
		h.probed = time.Now()
	}
	return h.err
}

// probe calls the driver through its socket. Any answer is a success, because an unready driver need not be restarted.
// gRPC is HTTP/2, so the client of the standard library is enough. A gRPC client would add half a megabyte to the
// program.
func probe(endpoint string) error {
	transport := overSocket(endpoint)
	defer transport.CloseIdleConnections()
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Timeout: probeTimeout, Transport: transport}
	emptyMessage := make([]byte, 5) // The header of a message has five bytes: not compressed, length 0.
	method := "http://driver" + csi.Identity_Probe_FullMethodName
	response, err := client.Post(method, "application/grpc", bytes.NewReader(emptyMessage))
	if err != nil {
		return errors.Unwrap(err)
	}
	return response.Body.Close()
}

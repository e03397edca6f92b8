// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestAnswerOfAHealthCheck(t *testing.T) {
	for _, test := range []struct {
		err  error
		code int
		body string
	}{
		{nil, http.StatusOK, "ok"},
		{errors.New("kubelet has not registered the driver"), http.StatusServiceUnavailable,
			"kubelet has not registered the driver"},
	} {
		w := httptest.NewRecorder()
		answer(func() error { return test.err })(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		body, err := io.ReadAll(w.Result().Body)
		if err != nil || w.Code != test.code || strings.TrimSpace(string(body)) != test.body {
			t.Errorf("%v: %d %q, %v", test.err, w.Code, body, err)
		}
	}
}

func TestHealthAndMetricsAreServedAtOneAddressOnly(t *testing.T) {
	for _, address := range []string{":9808", "0.0.0.0:9808", "[::]:9808", "127.0.0.1", "127.0.0.1:port"} {
		if stop, err := serveHTTP(address, "", nil, nil); err == nil {
			stop()
			t.Errorf("%s is served", address)
		}
	}
	stop, err := serveHTTP("", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
}

func TestHealthProbesSeldom(t *testing.T) {
	known := errors.New("the result of the last probe")
	h := &health{endpoint: filepath.Join(t.TempDir(), "nowhere.sock"), probed: time.Now().Add(time.Hour), err: known}
	if err := h.check(); err != known {
		t.Errorf("a fresh result: %v, want %v", err, known)
	}
	h.probed = time.Now().Add(-probeInterval)
	err := h.check()
	if err == nil || !strings.Contains(err.Error(), h.endpoint) || time.Since(h.probed) >= probeInterval {
		t.Errorf("an old result: %v, probed at %v; want a new probe", err, h.probed)
	}
}

func TestProbe(t *testing.T) {
	testkit.NothingLeft(t)
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, csi.UnimplementedIdentityServer{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if err := probe(socket); err != nil {
		t.Errorf("a server that answers with an error: %v", err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}

	if listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := probe(socket); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a socket that nobody serves: %v, want a timeout", err)
	}
}

// slowCollector is a metric whose collection lasts until release is closed.
type slowCollector struct{ collecting, release chan struct{} }

func (c slowCollector) Describe(chan<- *prometheus.Desc) {}

func (c slowCollector) Collect(chan<- prometheus.Metric) {
	c.collecting <- struct{}{}
	<-c.release
}

func TestFewScrapesAtTheSameTime(t *testing.T) {
	testkit.NothingLeft(t)
	slow := slowCollector{make(chan struct{}, maxScrapes+1), make(chan struct{})}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(slow)
	log := testkit.LogOf(t, 0)
	stop, err := serveHTTP("127.0.0.1:0", "", nil, metrics)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	address := served(t, log.Text())
	client := http.Client{Timeout: patience}
	get := func() (status int) {
		resp, err := client.Get("http://" + address + "/metrics")
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	var running sync.WaitGroup
	for range maxScrapes {
		running.Go(func() {
			if status := get(); status != http.StatusOK {
				t.Errorf("a scrape: status %d", status)
			}
		})
		select {
		case <-slow.collecting:
		case <-time.After(patience):
			t.Fatalf("waited %v in vain for a scrape", patience)
		}
	}
	if status := get(); status != http.StatusServiceUnavailable {
		t.Errorf("one scrape too many: status %d", status)
	}
	close(slow.release)
	running.Wait()
}

// served returns the address in the log of a driver.
func served(t *testing.T, log string) (address string) {
	t.Helper()
	match := regexp.MustCompile(`"Serving health and metrics" address="(.*)"`).FindStringSubmatch(log)
	if match == nil {
		t.Fatal("the log does not have the address")
	}
	return match[1]
}

// flood opens connections of many clients, which stay open until t ends. Some send nothing, some send half of a
// request, and some request metrics and do not read them.
func flood(t *testing.T, address string, clients, each int) {
	t.Helper()
	words := []string{"", "GET /healthz HTTP/1.1\r\nHost:", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"}
	for i := range clients * each {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%clients))}}
		conn, err := from.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, words[i%len(words)]) // The driver may have closed the connection.
	}
}

func TestAFloodOfTheHTTPAddress(t *testing.T) {
	const clients, each, publishes = 20, 5, 20
	testkit.NothingLeft(t)
	manifests := t.TempDir()
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: team}\nstringData: {k: text}\n"
	if err := os.WriteFile(filepath.Join(manifests, "keys.yaml"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	// The driver has fewer descriptors than the clients have connections.
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+manifests, "--max-open-files=200")
	address := served(t, d.Log())
	for i := range publishes {
		flood(t, address, clients, each)
		p := kubelet.Pod{Namespace: "team", Name: "web", UID: fmt.Sprint("web-", i)}
		target, err := d.Publish(t.Context(), p, kubelet.Volume{
			Name: "v", Attributes: map[string]string{"secretName": "keys", "uid": "1000"},
		})
		if err != nil {
			t.Fatalf("publish %d: %v", i+1, err)
		}
		if b, err := os.ReadFile(filepath.Join(target, "k")); err != nil || string(b) != "text" {
			t.Errorf("volume %d holds %q, %v", i+1, b, err)
		}
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, body := d.Get(path); status != http.StatusOK {
				t.Errorf("%s: %d %s", path, status, body)
			}
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.PID()))
	if err != nil || len(fds) > 2*maxConnections {
		t.Errorf("%d descriptors, %v", len(fds), err)
	}
	reliability.Shown(t, "F-48", fmt.Sprintf(
		"%d connections of %d clients: %d descriptors; all of %d publishes and %d probes succeed",
		publishes*clients*each, clients, len(fds), publishes, 2*publishes))
}

// fakeConn is a connection of a client that sends nothing.
type fakeConn struct {
	net.Conn
	from   net.Addr
	closed bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.from }

func (c *fakeConn) Close() error {
	c.closed = true
	return nil
}

func TestTheClientWithTheMostConnectionsLosesItsOldest(t *testing.T) {
	c := new(connections)
	connect := func(host string, port int) *fakeConn {
		conn := &fakeConn{from: &net.TCPAddr{IP: net.ParseIP(host), Port: port}}
		c.observe(conn, http.StateNew)
		return conn
	}
	probe := connect("fd00::1", 1)
	ended := connect("fd00::2", 1)
	c.observe(ended, http.StateActive)
	c.observe(ended, http.StateClosed)
	var many []*fakeConn
	for port := range maxConnections {
		many = append(many, connect("fd00::3", port))
	}
	scrape := connect("10.0.0.4", 1)
	if probe.closed || ended.closed || scrape.closed {
		t.Errorf("closed: probe %v, ended %v, scrape %v", probe.closed, ended.closed, scrape.closed)
	}
	for i, conn := range many {
		if oldest := i < 2; conn.closed != oldest {
			t.Errorf("connection %d of the client with the most: closed %v", i, conn.closed)
		}
	}
	if len(c.open) != maxConnections {
		t.Errorf("%d connections, want %d", len(c.open), maxConnections)
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package faultproxy is a proxy in front of a real API server that injects faults. Proxy answers requests instead of
// the API server, and writes into or ends open watches. Network breaks connections. The proxy records all requests.
package faultproxy

import (
	"encoding/binary"
	"encoding/pem"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// Handler answers a request and returns true, or returns false to forward the request to the API server.
type Handler = func(http.ResponseWriter, *http.Request) bool

// Proxy forwards requests to an API server. It is safe for concurrent use.
type Proxy struct {
	// Network is the listener of the proxy.
	*Network
	upstream http.RoundTripper
	address  *url.URL
	server   *httptest.Server

	mu       sync.Mutex
	handle   Handler
	requests []Request
	streams  map[chan []byte]bool
}

// Request is a request that the proxy received.
type Request struct {
	At  time.Time
	URL *url.URL
}

// New returns a proxy that serves HTTP/2 over TLS, as API servers do. It authenticates to the API server with config,
// so its clients need no credentials. The proxy ends with t, and its clients must end before.
func New(t testing.TB, config *rest.Config) *Proxy {
	t.Helper()
	p := newProxy(t, config)
	p.server.EnableHTTP2 = true
	p.server.StartTLS()
	return p
}

// NewPlain returns a proxy that serves HTTP/1.1 without TLS. A Handler can hijack its connections.
func NewPlain(t testing.TB, config *rest.Config) *Proxy {
	t.Helper()
	p := newProxy(t, config)
	p.server.Start()
	return p
}

func newProxy(t testing.TB, config *rest.Config) *Proxy {
	t.Helper()
	upstream, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{upstream: upstream, address: address, streams: map[chan []byte]bool{}}
	p.server = httptest.NewUnstartedServer(p)
	// A client that gives up a connection during a handshake does so because of a fault.
	p.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.Network = newNetwork(p.server.Listener)
	p.server.Listener = p.Network
	t.Cleanup(func() {
		p.Heal()
		// The server would wait for all its requests, and a watch lasts for minutes.
		p.server.CloseClientConnections()
		p.server.Close()
		utilnet.CloseIdleConnectionsFor(p.upstream)
	})
	return p
}

// Config returns a client configuration for the proxy.
func (p *Proxy) Config() *rest.Config {
	c := &rest.Config{Host: p.server.URL, QPS: -1}
	if certificate := p.server.Certificate(); certificate != nil {
		c.CAData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	}
	return c
}

// Answer makes handle answer all further requests. With nil, the API server answers them.
func (p *Proxy) Answer(handle Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = handle
}

// Say writes a frame into each open watch, or ends each watch if the frame is nil. It returns the number of watches.
func (p *Proxy) Say(frame []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.streams)
	for stream := range p.streams {
		if frame == nil {
			delete(p.streams, stream)
			close(stream)
		} else {
			stream <- frame
		}
	}
	return n
}

// Watches returns the number of open watches.
func (p *Proxy) Watches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.streams)
}

// Asked returns the number of received requests.
func (p *Proxy) Asked() int { return len(p.Requests()) }

// Requests returns the received requests in order.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests[:len(p.requests):len(p.requests)]
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests = append(p.requests, Request{time.Now(), r.URL})
	handle := p.handle
	p.mu.Unlock()
	if handle != nil && handle(w, r) {
		return
	}
	request := r.Clone(r.Context())
	request.URL.Scheme, request.URL.Host, request.Host, request.RequestURI = p.address.Scheme, p.address.Host, "", ""
	request.Header.Del("Accept-Encoding") // The transport adds gzip itself, and decompresses.
	response, err := p.upstream.RoundTrip(request)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer response.Body.Close()
	maps.Copy(w.Header(), response.Header)
	w.WriteHeader(response.StatusCode)
	_ = http.NewResponseController(w).Flush()
	if r.URL.Query().Get("watch") == "" || response.StatusCode != http.StatusOK {
		_, _ = io.Copy(w, response.Body)
		return
	}
	p.relay(w, r, response.Body)
}

// relay forwards the frames of a watch, and writes the frames of Say between them.
func (p *Proxy) relay(w http.ResponseWriter, r *http.Request, watch io.Reader) {
	frames := make(chan []byte)
	go func() {
		defer close(frames)
		for {
			frame, err := nextFrame(watch)
			if err != nil {
				return
			}
			select {
			case frames <- frame:
			case <-r.Context().Done():
				return
			}
		}
	}()
	said := make(chan []byte, 10)
	p.mu.Lock()
	p.streams[said] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.streams, said)
	}()
	for {
		var frame []byte
		select {
		case frame = <-frames:
		case frame = <-said:
		case <-r.Context().Done():
		}
		if frame == nil {
			return
		}
		_, _ = w.Write(frame)
		_ = http.NewResponseController(w).Flush()
	}
}

// nextFrame reads an event in its wire format: a length in four bytes, and the bytes of the event.
func nextFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	frame := append(head[:], make([]byte, binary.BigEndian.Uint32(head[:]))...)
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

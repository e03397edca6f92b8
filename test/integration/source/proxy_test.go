// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// proxy stands between a source and the API server, asks in JSON, whatever the source asked for, and lets a test answer
// in the API server's place, write into the open watches and cut them.
type proxy struct {
	config *rest.Config
	// handle answers a request and returns true, or leaves it to the API server.
	handle atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	asked  atomic.Int64

	upstream http.RoundTripper
	host     string

	mu      sync.Mutex
	streams map[chan string]bool
}

// newProxy returns a proxy that asks the API server with config.
func newProxy(t testing.TB, config *rest.Config) *proxy {
	t.Helper()
	upstream, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{upstream: upstream, host: controlPlane.APIServerAddress(), streams: map[chan string]bool{}}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	// A watch lasts for minutes, and the server waits for all its requests.
	t.Cleanup(server.CloseClientConnections)
	p.config = &rest.Config{Host: server.URL, QPS: -1}
	return p
}

// answer has all requests answered by handle from now on; nil: by the API server.
func (p *proxy) answer(handle func(http.ResponseWriter, *http.Request) bool) {
	if handle == nil {
		p.handle.Store(nil)
		return
	}
	p.handle.Store(&handle)
}

// say writes a line into each open watch, or cuts it if the line is empty. It returns how many there were.
func (p *proxy) say(line string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for stream := range p.streams {
		stream <- line
	}
	return len(p.streams)
}

func (p *proxy) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.streams)
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	if handle := p.handle.Load(); handle != nil && (*handle)(w, r) {
		return
	}
	request := r.Clone(r.Context())
	request.URL.Scheme, request.URL.Host, request.Host, request.RequestURI = "https", p.host, "", ""
	request.Header.Set("Accept", "application/json")
	request.Header.Del("Accept-Encoding")
	response, err := p.upstream.RoundTrip(request)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer response.Body.Close()
	w.Header().Set("Content-Type", response.Header.Get("Content-Type"))
	w.WriteHeader(response.StatusCode)
	_ = http.NewResponseController(w).Flush()

	lines := make(chan string)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(response.Body)
		scanner.Buffer(nil, 4<<20)
		for scanner.Scan() {
			select {
			case lines <- scanner.Text():
			case <-r.Context().Done():
				return
			}
		}
	}()
	said := make(chan string, 10)
	p.mu.Lock()
	if r.URL.Query().Get("watch") != "" && response.StatusCode == http.StatusOK {
		p.streams[said] = true
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.streams, said)
	}()
	for {
		var line string
		var more bool
		select {
		case line, more = <-lines:
		case line = <-said:
			more = line != ""
		case <-r.Context().Done():
		}
		if !more {
			return
		}
		fmt.Fprintln(w, line)
		_ = http.NewResponseController(w).Flush()
	}
}

// status answers each request with a status as the API server writes them.
func status(code int32, reason metav1.StatusReason, message string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(code))
		fmt.Fprintln(w, statusJSON(code, reason, message))
		return true
	}
}

func statusJSON(code int32, reason metav1.StatusReason, message string) string {
	b, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// errorEvent is a watch's way to say that something failed.
func errorEvent(code int32, reason metav1.StatusReason, message string) string {
	return fmt.Sprintf(`{"type":"ERROR","object":%s}`, statusJSON(code, reason, message))
}

// tooLarge answers as an API server whose cache is behind what the client has seen.
func tooLarge(w http.ResponseWriter, _ *http.Request) bool {
	s := apierrors.NewTimeoutError("Too large resource version: 9, current: 1", 1).ErrStatus
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	s.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusGatewayTimeout)
	_ = json.NewEncoder(w).Encode(s)
	return true
}

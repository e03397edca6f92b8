// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
)

// proxy stands between a source and the API server, and lets a test answer in the API server's place, write into the open
// watches and cut them.
type proxy struct {
	config *rest.Config
	// handle answers a request and returns true, or leaves it to the API server.
	handle atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	asked  atomic.Int64

	upstream http.RoundTripper
	host     string

	mu      sync.Mutex
	streams map[chan []byte]bool
}

// newProxy returns a proxy that asks the API server with config.
func newProxy(t testing.TB, config *rest.Config) *proxy {
	t.Helper()
	upstream, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{upstream: upstream, host: controlPlane.APIServerAddress(), streams: map[chan []byte]bool{}}
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

// say writes a frame into each open watch, or cuts it if the frame is nil. It returns how many there were.
func (p *proxy) say(frame []byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for stream := range p.streams {
		stream <- frame
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
	request.Header.Del("Accept-Encoding") // the transport asks for gzip by itself, and takes it off
	response, err := p.upstream.RoundTrip(request)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer response.Body.Close()
	w.Header().Set("Content-Type", response.Header.Get("Content-Type"))
	w.WriteHeader(response.StatusCode)
	_ = http.NewResponseController(w).Flush()

	if r.URL.Query().Get("watch") == "" || response.StatusCode != http.StatusOK {
		_, _ = io.Copy(w, response.Body)
		return
	}
	frames := make(chan []byte)
	go func() {
		defer close(frames)
		for {
			frame, err := nextFrame(response.Body)
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

// nextFrame reads an event as it is on the wire: its length in four bytes, and as many more.
func nextFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	frame := append(head[:], make([]byte, binary.BigEndian.Uint32(head[:]))...)
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

// event is one of a watch, with an object of apiVersion v1, as it is on the wire.
func event(name string, object runtime.Object) []byte {
	return rawEvent(name, encoded(object))
}

func rawEvent(name string, object []byte) []byte {
	e := metav1.WatchEvent{Type: name, Object: runtime.RawExtension{Raw: object}}
	data, err := e.Marshal()
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
}

// encoded is an object of apiVersion v1 in protobuf, as the API server sends it.
func encoded(object runtime.Object) []byte {
	object = object.DeepCopyObject()
	object.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(reflect.TypeOf(object).Elem().Name()))
	var data bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(object, &data); err != nil {
		panic(err)
	}
	return data.Bytes()
}

// protobufAnswer sends what a test wrote as what it says it is.
func protobufAnswer(answer func(*http.Request) []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		_, _ = w.Write(answer(r))
		return true
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
func errorEvent(code int32, reason metav1.StatusReason, message string) []byte {
	return event("ERROR", &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message})
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

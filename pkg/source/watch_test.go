// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// serve returns an API whose server is handler. The tests with a real API server are in test/integration/source.
func serve(t testing.TB, o Options, handler http.HandlerFunc) *API {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	api, err := NewAPI(&rest.Config{Host: server.URL}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	return api
}

// encoded returns an object of apiVersion v1 in the encoding of the API server.
func encoded(t testing.TB, object runtime.Object) []byte {
	t.Helper()
	object = object.DeepCopyObject() // Several tests may use the same object.
	object.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(reflect.TypeOf(object).Elem().Name()))
	var data bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(object, &data); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

func frame(t testing.TB, name string, object runtime.Object) []byte {
	t.Helper()
	e := metav1.WatchEvent{Type: name, Object: runtime.RawExtension{Raw: encoded(t, object)}}
	data, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
}

func secretOf(version string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns", UID: "u", ResourceVersion: version},
		Data:       map[string][]byte{"key": []byte(version)},
	}
}

// bookmark returns an event with a version. The event can end a streaming list.
func bookmark(t testing.TB, version string, endsList bool) []byte {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}}
	if endsList {
		s.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return frame(t, "BOOKMARK", s)
}

// list returns a streaming list of one secret.
func list(t testing.TB, version string) []byte {
	t.Helper()
	return append(frame(t, "ADDED", secretOf(version)), bookmark(t, version, true)...)
}

// stay sends data, and then nothing until the client disconnects.
func stay(w http.ResponseWriter, r *http.Request, data []byte) {
	_, _ = w.Write(data)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func refuse(t testing.TB, w http.ResponseWriter, err *apierrors.StatusError) {
	t.Helper()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	w.WriteHeader(int(err.ErrStatus.Code))
	_, _ = w.Write(encoded(t, &err.ErrStatus))
}

func forbidden() *apierrors.StatusError {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a", errors.New("no relationship found"))
}

func waitKnown(t testing.TB, r *registry, ref Ref) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	r.Wait(ctx, ref)
	if ctx.Err() != nil {
		t.Fatalf("nothing known after %v", soon)
	}
}

// TestRounds answers the first requests, and checks which requests follow.
func TestRounds(t *testing.T) {
	t.Parallel()
	write := func(data ...[]byte) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = w.Write(bytes.Join(data, nil)) }
	}
	fail := func(err *apierrors.StatusError) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { refuse(t, w, err) }
	}
	expired, away := apierrors.NewResourceExpired("too old"), apierrors.NewServiceUnavailable("later")
	tooLarge := apierrors.NewTimeoutError("Too large resource version: 3, current: 1", 0)
	tooLarge.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}
	unsupported := apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil)
	for name, test := range map[string]struct {
		answers []func(http.ResponseWriter)
		// want has the requests: one for each answer, and another one that succeeds.
		want string
		// notified is the number of notifications.
		notified int64
	}{
		"continue from the last event, and from a bookmark": {
			[]func(http.ResponseWriter){write(list(t, "3"), bookmark(t, "7", false)),
				write(list(t, "3"), frame(t, "MODIFIED", secretOf("9")))},
			"list 0, list 7, list 9", 3,
		},
		"continue from a deletion": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(list(t, "3"), frame(t, "DELETED", secretOf("12")))},
			"list 0, list 3, list 12", 3,
		},
		"deleted between two watches": {[]func(http.ResponseWriter){write(list(t, "3")), write(bookmark(t, "12", true))},
			"list 0, list 3, list 12", 3},
		"a list with nothing": {[]func(http.ResponseWriter){write(list(t, "3")), write()}, "list 0, list 3, list ", 2},
		"410 in place of a list": {[]func(http.ResponseWriter){write(list(t, "3")), fail(expired)}, "list 0, list 3, list ",
			2},
		"too large a version": {[]func(http.ResponseWriter){write(list(t, "3")), fail(tooLarge)}, "list 0, list 3, list ", 2},
		"410 in a list": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(frame(t, "ERROR", &expired.ErrStatus))},
			"list 0, list 3, list ", 2,
		},
		"410 in the watch of a list": {
			[]func(http.ResponseWriter){write(list(t, "3"), frame(t, "ERROR", &expired.ErrStatus))}, "list 0, list ", 2,
		},
		"503 in place of a list": {[]func(http.ResponseWriter){write(list(t, "3")), fail(away)}, "list 0, list 3, list 3", 2},
		"503 in a list": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(frame(t, "ERROR", &away.ErrStatus))},
			"list 0, list 3, list 3", 2,
		},
		"503 in place of the first list": {[]func(http.ResponseWriter){fail(away)}, "list 0, list 0", 2},
		"403 after it was read": {[]func(http.ResponseWriter){write(list(t, "3")), fail(forbidden())},
			"list 0, list 3, list ", 2},
		"403 in place of the first list": {[]func(http.ResponseWriter){fail(forbidden())}, "list 0, list 0", 2},
		"nonsense in a watch": {
			[]func(http.ResponseWriter){write(list(t, "3"), frame(t, "MODIFIED", &corev1.Pod{}))}, "list 0, list ", 2,
		},
		"not in the list, but it exists": {
			[]func(http.ResponseWriter){write(bookmark(t, "3", true)), write(encoded(t, secretOf("5")))}, "list 0, get, watch 5",
			2,
		},
		"missing, and created": {
			[]func(http.ResponseWriter){
				write(bookmark(t, "3", true)), fail(apierrors.NewNotFound(schema.GroupResource{}, "a")), write(list(t, "6")),
			}, "list 0, get, list 3, list 6", 3,
		},
		"changed and deleted while it is listed": {
			[]func(http.ResponseWriter){write(frame(t, "ADDED", secretOf("3")), frame(t, "MODIFIED", secretOf("4")),
				frame(t, "DELETED", secretOf("5")),
				frame(t, "ADDED", secretOf("6")), bookmark(t, "7", true))}, "list 0, list 7", 2,
		},
		"no streaming lists": {
			[]func(http.ResponseWriter){fail(unsupported), write(encoded(t, secretOf("5")))}, "list 0, get, watch 5", 2,
		},
		"no streaming lists, and missing": {
			[]func(http.ResponseWriter){fail(unsupported), fail(apierrors.NewNotFound(schema.GroupResource{}, "a"))},
			"list 0, get, watch ", 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var asked []string
			api := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
				what := askedFor(r)
				mu.Lock()
				n := len(asked)
				asked = append(asked, what)
				mu.Unlock()
				switch {
				case n < len(test.answers):
					test.answers[n](w)
				case strings.HasPrefix(what, "watch"):
					stay(w, r, frame(t, "MODIFIED", secretOf("30")))
				default:
					stay(w, r, list(t, "30"))
				}
			})
			ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
			var notified atomic.Int64
			api.Subscribe(ref, "v", false, func() { notified.Add(1) })
			testkit.Eventually(t, soon, "the last answer", func() bool { return value(&api.registry, ref) == "30" })
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(asked, ", "); got != test.want {
				t.Errorf("asked for %q, want %q", got, test.want)
			}
			if notified.Load() != test.notified {
				t.Errorf("%d notifications, want %d", notified.Load(), test.notified)
			}
		})
	}
}

// TestNewest uses an API server with an outdated cache. A subscriber that requires the newest version gets no older
// version, not even of an object that has a watch already.
func TestNewest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// noStreaming means that the API server has no streaming lists. missing means that the object has been deleted.
		noStreaming, missing bool
		want                 string
	}{
		"changed":                          {false, false, "list "},
		"deleted":                          {false, true, "list "},
		"changed, without streaming lists": {true, false, "list , get, watch 9"},
		"deleted, without streaming lists": {true, true, "list , get, watch "},
	} {
		for _, watched := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, watched already: %v", name, watched), func(t *testing.T) {
				t.Parallel()
				ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
				server := &outdated{t: t, noStreaming: test.noStreaming, missing: test.missing}
				api := serve(t, Options{}, server.ServeHTTP)
				if watched {
					api.Subscribe(ref, "new", false, func() {})
					waitKnown(t, &api.registry, ref)
					if got := value(&api.registry, ref); got != "3" {
						t.Errorf("a new volume got %q, want the cache's version", got)
					}
				}
				api.Subscribe(ref, "recovered", true, func() {
					server.recovered.CompareAndSwap(nil, ptr.To(api.objects[ref].result.content.ResourceVersion))
				})
				api.Subscribe(ref, "adopted", true, func() {}) // The same list serves both.
				waitKnown(t, &api.registry, ref)
				if c, err := api.Get(ref); test.missing != errors.Is(err, ErrNotFound) ||
					!test.missing && (err != nil || string(c.Data["key"]) != "9") {
					t.Errorf("the newest is %s, %v", c.Data, err)
				}
				if first := server.recovered.Load(); *first == "3" {
					t.Error("the recovered volume was notified of the cache's version")
				}
				testkit.Eventually(t, soon, "the requests "+test.want, func() bool { return server.consistent() == test.want })
				if n := api.Watched(); n != 1 {
					t.Errorf("%d objects are watched, want 1", n)
				}
			})
		}
	}
	reliability.Shown(t, "F-29", "a subscriber that asks for the newest, 8 times, of an outdated cache")
}

// outdated is an API server whose cache has version 3 of a Secret, and whose storage has version 9 or no Secret.
type outdated struct {
	t                    testing.TB
	noStreaming, missing bool
	// recovered is the first version of which the recovered volume was notified.
	recovered atomic.Pointer[string]

	mu sync.Mutex
	// asked has the requests that are not answered from the cache.
	asked []string
}

func (s *outdated) consistent() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, ", ")
}

func (s *outdated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := askedFor(r)
	if what == "list 0" {
		stay(w, r, list(s.t, "3"))
		return
	}
	s.mu.Lock()
	s.asked = append(s.asked, what)
	s.mu.Unlock()
	switch {
	case strings.HasPrefix(what, "watch"):
		stay(w, r, bookmark(s.t, "9", false))
	case what == "get" && s.missing:
		refuse(s.t, w, apierrors.NewNotFound(schema.GroupResource{}, "a"))
	case what == "get":
		_, _ = w.Write(encoded(s.t, secretOf("9")))
	case s.noStreaming:
		refuse(s.t, w, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
	case s.missing:
		stay(w, r, bookmark(s.t, "9", true))
	default:
		stay(w, r, list(s.t, "9"))
	}
}

// TestRead uses the same API server.
func TestRead(t *testing.T) {
	t.Parallel()
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	there, gone := &outdated{t: t}, &outdated{t: t, missing: true}
	api := serve(t, Options{}, there.ServeHTTP)
	if c, err := api.Read(t.Context(), ref); err != nil || string(c.Data["key"]) != "9" || c.UID != "u" {
		t.Errorf("content %+v, error %v; want version 9", c, err)
	}
	if asked := there.consistent(); asked != "get" || api.Watched() != 0 {
		t.Errorf("requests %q, %d watched; want one get", asked, api.Watched())
	}
	var e *Error
	if _, err := serve(t, Options{}, gone.ServeHTTP).Read(t.Context(), ref); !errors.As(err, &e) ||
		e.Reason != ErrNotFound || e.Ref != ref {
		t.Errorf("of a missing object: error %v, want %v", err, ErrNotFound)
	}
	ref.Kind = attributes.ConfigMap
	if _, err := api.Read(t.Context(), ref); !errors.Is(err, ErrUnavailable) {
		t.Errorf("of another kind: error %v, want %v", err, ErrUnavailable)
	}
}

// askedFor describes a request by a word and a version.
func askedFor(r *http.Request) string {
	query := r.URL.Query()
	switch version := query.Get("resourceVersion"); {
	case !query.Has("fieldSelector"):
		return "get"
	case query.Get("sendInitialEvents") == "true":
		return "list " + version
	default:
		return "watch " + version
	}
}

// TestStall uses a server that accepts requests and stops answering.
func TestStall(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"no answer":                 func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"an answer without content": func(w http.ResponseWriter, r *http.Request) { stay(w, r, nil) },
		"half an event":             func(w http.ResponseWriter, r *http.Request) { stay(w, r, list(t, "1")[:50]) },
		"a list without an end": func(w http.ResponseWriter, r *http.Request) {
			stay(w, r, frame(t, "ADDED", secretOf("1")))
		},
		"no answer to the get after the list": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("watch") {
				stay(w, r, bookmark(t, "1", true))
			}
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := serve(t, Options{}, handler)
			api.requestTimeout = 50 * time.Millisecond
			ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
			api.Subscribe(ref, "v", false, func() {})
			waitKnown(t, &api.registry, ref)
			if _, err := api.Get(ref); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), errNoAnswer.Error()) {
				t.Errorf("error %v, want %v: %v", err, ErrUnavailable, errNoAnswer)
			}
			start := time.Now()
			api.Close()
			if took := time.Since(start); took > time.Second {
				t.Errorf("Close took %v", took)
			}
		})
	}
}

// TestUndeclared uses a Node authorizer that does not know the pod for a moment.
func TestUndeclared(t *testing.T) {
	t.Parallel()
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	for _, node := range []bool{true, false} {
		t.Run(fmt.Sprintf("access node: %v", node), func(t *testing.T) {
			t.Parallel()
			var asked, notified atomic.Int64
			api := serve(t, Options{NodeName: "node-1", Impersonate: node}, func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Impersonate-User"); (got == "system:node:node-1") != node {
					t.Errorf("impersonates %q", got)
				}
				if asked.Add(1) == 1 {
					refuse(t, w, forbidden())
					return
				}
				stay(w, r, list(t, "1"))
			})
			api.Subscribe(ref, "v", false, func() { notified.Add(1) })
			waitKnown(t, &api.registry, ref)
			var e *Error
			if _, err := api.Get(ref); !errors.As(err, &e) || e.Reason != ErrForbidden || e.Undeclared != node {
				t.Errorf("error %+v, want %v, undeclared: %v", err, ErrForbidden, node)
			}
			if asked.Load() != 1 || notified.Load() != 1 {
				t.Errorf("%d requests, %d notifications; want the first answer as the result", asked.Load(), notified.Load())
			}
			api.Retry(ref)
			waitKnown(t, &api.registry, ref)
			if got := value(&api.registry, ref); got != "1" || asked.Load() != 2 {
				t.Errorf("after a retry: %s, %d requests", got, asked.Load())
			}
		})
	}
}

// TestStarts subscribes to many objects at once. It counts the lists that the API server has not answered.
func TestStarts(t *testing.T) {
	t.Parallel()
	const many = 5 * maxStarts
	ref := func(n int) Ref {
		return Ref{Kind: attributes.Secret, Namespace: "ns", Name: fmt.Sprint("a", n)}
	}
	var starting, most atomic.Int64
	answer := make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		n := starting.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		select {
		case <-answer:
		case <-r.Context().Done():
		}
		starting.Add(-1)
		stay(w, r, list(t, "1"))
	}
	api := serve(t, Options{}, handler)
	for n := range many {
		api.Subscribe(ref(n), "v", false, func() {})
	}
	testkit.Eventually(t, soon, "as many lists as may be started", func() bool { return starting.Load() == maxStarts })
	close(answer)
	for n := range many {
		waitKnown(t, &api.registry, ref(n))
		if got := value(&api.registry, ref(n)); got != "1" {
			t.Errorf("%s: %s", ref(n), got)
		}
	}
	if most.Load() != maxStarts {
		t.Errorf("%d lists at a time, want at most %d", most.Load(), maxStarts)
	}
	testkit.Eventually(t, soon, "all to be started", func() bool { return len(api.starts.slots) == 0 })

	// An API server that never answers is an outage for all objects, also for those that have not started a watch.
	api = serve(t, Options{}, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	api.requestTimeout = 100 * time.Millisecond
	for n := range many {
		api.Subscribe(ref(n), "v", false, func() {})
	}
	for n := range many {
		waitKnown(t, &api.registry, ref(n))
		if _, err := api.Get(ref(n)); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), errNoAnswer.Error()) {
			t.Errorf("%s: error %v, want %v", ref(n), err, errNoAnswer)
		}
	}
	api.Close()
}

// TestOutageOfManyObjects checks that the number of requests in an outage does not depend on the number of objects, and
// that all objects are read again after the outage.
func TestOutageOfManyObjects(t *testing.T) {
	t.Parallel()
	const many = 20 * maxStarts
	ref := func(n int) Ref {
		return Ref{Kind: attributes.Secret, Namespace: "ns", Name: fmt.Sprint("a", n)}
	}
	var asked atomic.Int64
	var back atomic.Bool
	api := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		if back.Load() {
			stay(w, r, list(t, "1"))
			return
		}
		asked.Add(1)
		refuse(t, w, apierrors.NewServiceUnavailable("later"))
	})
	for n := range many {
		api.Subscribe(ref(n), "v", false, func() {})
	}
	for n := range many {
		waitKnown(t, &api.registry, ref(n))
		if _, err := api.Get(ref(n)); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "later") {
			t.Errorf("%s: error %v, want %v", ref(n), err, ErrUnavailable)
		}
	}
	if n := asked.Load(); n > many/4 {
		t.Errorf("%d requests for %d objects", n, many)
	}
	back.Store(true)
	for n := range many {
		testkit.Eventually(t, maxBackoff+maxSpread+soon, "the content of all objects",
			func() bool { return value(&api.registry, ref(n)) == "1" })
	}
}

// TestResume ends watches after their full time, and earlier. Only the former require no list.
func TestResume(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	api := serve(t, Options{WatchDuration: 2 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, askedFor(r))
		n := len(asked)
		mu.Unlock()
		switch n {
		case 1, 2:
			data := list(t, "3")
			if n == 2 {
				data = nil
			}
			_, _ = w.Write(append(data, bookmark(t, fmt.Sprint(6+n), false)...))
			_ = http.NewResponseController(w).Flush()
			seconds, err := strconv.Atoi(r.URL.Query().Get("timeoutSeconds"))
			if err != nil || seconds != 1 {
				t.Errorf("timeoutSeconds %d, %v; want 1, between half of the duration and all of it", seconds, err)
			}
			time.Sleep(time.Duration(seconds) * time.Second) // as the API server does
		case 3: // The end comes too early.
			_, _ = w.Write(bookmark(t, "9", false))
		default:
			stay(w, r, list(t, "30"))
		}
	})
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	api.Subscribe(ref, "v", false, func() {})
	testkit.Eventually(t, soon, "the last answer", func() bool { return value(&api.registry, ref) == "30" })
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(asked, ", "), "list 0, watch 7, watch 8, list 9"; got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
}

// panicking is a decoder that panics with its input for the first calls.
type panicking struct {
	runtime.Decoder
	times *atomic.Int64
}

func (p panicking) Decode(
	data []byte, gvk *schema.GroupVersionKind, into runtime.Object,
) (runtime.Object, *schema.GroupVersionKind, error) {
	if bytes.Contains(data, []byte("confidential")) && p.times.Add(-1) >= 0 {
		panic(string(data))
	}
	return p.Decoder.Decode(data, gvk, into)
}

// TestPanic makes the decoder panic for one object. It captures klog, so it is not parallel.
func TestPanic(t *testing.T) {
	log := testkit.LogOf(t, 0)
	good := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	bad := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "bad"}
	api := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		secret := secretOf("1")
		if strings.Contains(r.URL.RawQuery, "bad") {
			secret.Data["key"] = []byte("confidential")
		}
		stay(w, r, append(frame(t, "ADDED", secret), bookmark(t, "1", true)...))
	})
	decoder := panicking{api.decoder, &atomic.Int64{}}
	decoder.times.Store(3)
	api.decoder = decoder
	api.Subscribe(bad, "v", false, func() {})
	waitKnown(t, &api.registry, bad)
	_, err := api.Get(bad)
	if !errors.Is(err, ErrUnavailable) || !strings.HasSuffix(err.Error(), "reading the object panicked with a string") {
		t.Errorf("error %v, want %v, with the type of the panic", err, ErrUnavailable)
	}
	api.Subscribe(good, "v", false, func() {})
	waitKnown(t, &api.registry, good)
	if got := value(&api.registry, good); got != "1" {
		t.Errorf("the other object: %s", got)
	}
	testkit.Eventually(t, soon, "the object to be read again", func() bool {
		return value(&api.registry, bad) == "confidential"
	})
	line := `"The driver has a bug" err="reading the object panicked with a string" object="Secret \"ns/bad\""`
	if text := log.Text(); strings.Contains(text, "confidential") || !strings.Contains(text, line) {
		t.Errorf("want lines with the type of the panic, and never what was read:\n%s", text)
	}
	reliability.Shown(t, "F-30", "the reading of one object panics three times")
}

// TestSilence uses an HTTP/2 server that behaves like a proxy whose upstream has died: the connection answers pings,
// but the watch brings no events.
func TestSilence(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var connections sync.Map
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("%s, want HTTP/2", r.Proto)
		}
		connections.Store(r.RemoteAddr, true)
		switch asked.Add(1) {
		case 1:
			stay(w, r, list(t, "3"))
		default:
			stay(w, r, list(t, "9"))
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	api, err := NewAPI(&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	api.silence = 100 * time.Millisecond
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	start := time.Now()
	api.Subscribe(ref, "v", false, func() {})
	testkit.Eventually(t, soon, "another watch, with what changed meanwhile", func() bool {
		return value(&api.registry, ref) == "9"
	})
	if took := time.Since(start); took < api.silence {
		t.Errorf("the watch ended after %v, want at least %v", took, api.silence)
	}
	if _, err := api.Outage(ref); err != nil {
		t.Errorf("a silent watch counts as an outage: %v", err)
	}
	n := 0
	connections.Range(func(any, any) bool { n++; return true })
	if n < 2 {
		t.Error("the new watch uses the connection of the silent one")
	}
	reliability.Shown(t, "F-50", "another watch, by another connection, after a silent one")
}

// TestEventsBreakTheSilence checks that each event and bookmark keeps a watch alive.
func TestEventsBreakTheSilence(t *testing.T) {
	t.Parallel()
	api := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) { stay(w, r, nil) })
	w := &watcher{api: api, object: &object{ref: Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}}}
	alive := 0
	events := bytes.NewReader(append(frame(t, "MODIFIED", secretOf("4")), bookmark(t, "5", false)...))
	if err := w.follow(events, true, func() { alive++ }); err != nil || alive != 3 {
		t.Errorf("%d signs of life, error %v; want one of the watch and one of each event", alive, err)
	}
}

// TestImmutableRecheck deletes an immutable object that has a subscriber, and creates it again.
func TestImmutableRecheck(t *testing.T) {
	t.Parallel()
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	var mu sync.Mutex
	version := "1"
	var urls []url.Values
	set := func(v string) {
		mu.Lock()
		defer mu.Unlock()
		version = v
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		urls = append(urls, r.URL.Query())
		s := secretOf(version)
		mu.Unlock()
		s.Immutable = ptr.To(true)
		stay(w, r, append(frame(t, "ADDED", s), bookmark(t, s.ResourceVersion, true)...))
	}

	api := serve(t, Options{WatchDuration: 2 * time.Second}, handler)
	var notified atomic.Int64
	api.Subscribe(ref, "one", false, func() { notified.Add(1) })
	waitKnown(t, &api.registry, ref)
	set("2")
	testkit.Eventually(t, soon, "the recheck to find the new object",
		func() bool { return value(&api.registry, ref) == "2" })
	if notified.Load() != 2 {
		t.Errorf("%d notifications, want 2", notified.Load())
	}
	mu.Lock()
	if got := urls[1].Get("resourceVersion"); got != "" {
		t.Errorf("the second request was for version %q, want the newest", got)
	}
	mu.Unlock()

	api = serve(t, Options{}, handler)
	api.Subscribe(ref, "one", false, func() {})
	waitKnown(t, &api.registry, ref)
	testkit.Eventually(t, soon, "the watch to end", func() bool {
		api.mu.Lock()
		defer api.mu.Unlock()
		return api.objects[ref].stopped
	})
	set("3")
	api.Subscribe(ref, "two", false, func() {})
	waitKnown(t, &api.registry, ref)
	if got := value(&api.registry, ref); got != "3" {
		t.Errorf("a new subscriber got %s, want 3", got)
	}
}

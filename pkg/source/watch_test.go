// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
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

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// serve returns an API of a server that is played. What real ones do is in test/integration/source.
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

// encoded is an object of apiVersion v1 as the API server sends it.
func encoded(t testing.TB, object runtime.Object) []byte {
	t.Helper()
	object = object.DeepCopyObject() // several tests may send one
	object.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(reflect.TypeOf(object).Elem().Name()))
	var data bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(object, &data); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

func event(t testing.TB, name string, object runtime.Object) []byte {
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

// bookmark is the event that tells a version, and the end of a streaming list.
func bookmark(t testing.TB, version string, endsList bool) []byte {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}}
	if endsList {
		s.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return event(t, "BOOKMARK", s)
}

// list is a streaming list of one secret.
func list(t testing.TB, version string) []byte {
	t.Helper()
	return append(event(t, "ADDED", secretOf(version)), bookmark(t, version, true)...)
}

// stay sends something, and then nothing more until the client goes.
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

// TestRounds plays a server for a few requests, and looks how the watcher goes on.
func TestRounds(t *testing.T) {
	t.Parallel()
	write := func(data ...[]byte) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = w.Write(bytes.Join(data, nil)) }
	}
	fail := func(err *apierrors.StatusError) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { refuse(t, w, err) }
	}
	expired, away := apierrors.NewResourceExpired("too old"), apierrors.NewServiceUnavailable("later")
	unsupported := apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil)
	plainList := &corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "5"}}
	for name, test := range map[string]struct {
		answers []func(http.ResponseWriter)
		// want is what is asked for: the answers', and one more, which is answered well.
		want string
		// told is how often, that answer included.
		told int64
	}{
		"on from the last event, and from a bookmark": {
			[]func(http.ResponseWriter){write(list(t, "3"), bookmark(t, "7", false)), write(event(t, "MODIFIED", secretOf("9")))},
			"list 0, watch 7, watch 9", 3,
		},
		"on from a deletion":      {[]func(http.ResponseWriter){write(list(t, "3")), write(event(t, "DELETED", secretOf("12")))}, "list 0, watch 3, watch 12", 3},
		"a watch with nothing":    {[]func(http.ResponseWriter){write(list(t, "3")), write()}, "list 0, watch 3, list ", 2},
		"410 in place of a watch": {[]func(http.ResponseWriter){write(list(t, "3")), fail(expired)}, "list 0, watch 3, list ", 2},
		"410 in a watch": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(event(t, "ERROR", &expired.ErrStatus))}, "list 0, watch 3, list ", 2,
		},
		"410 in the watch of a list": {
			[]func(http.ResponseWriter){write(list(t, "3"), event(t, "ERROR", &expired.ErrStatus))}, "list 0, list ", 2,
		},
		"503 in place of a watch": {[]func(http.ResponseWriter){write(list(t, "3")), fail(away)}, "list 0, watch 3, watch 3", 2},
		"503 in a watch": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(event(t, "ERROR", &away.ErrStatus))}, "list 0, watch 3, watch 3", 2,
		},
		"503 in place of the first list": {[]func(http.ResponseWriter){fail(away)}, "list 0, list 0", 2},
		"403 after it was read":          {[]func(http.ResponseWriter){write(list(t, "3")), fail(forbidden())}, "list 0, watch 3, list ", 2},
		"403 in place of the first list": {[]func(http.ResponseWriter){fail(forbidden())}, "list 0, list 0", 2},
		"nonsense in a watch": {
			[]func(http.ResponseWriter){write(list(t, "3")), write(event(t, "MODIFIED", &corev1.Pod{}))}, "list 0, watch 3, list ", 2,
		},
		"not in the list, but there": {
			[]func(http.ResponseWriter){write(bookmark(t, "3", true)), write(encoded(t, secretOf("5")))}, "list 0, get, watch 5", 2,
		},
		"missing, and made": {
			[]func(http.ResponseWriter){
				write(bookmark(t, "3", true)), fail(apierrors.NewNotFound(schema.GroupResource{}, "a")), write(event(t, "ADDED", secretOf("6"))),
			}, "list 0, get, watch 3, watch 6", 3,
		},
		"changed and deleted while it is listed": {
			[]func(http.ResponseWriter){write(event(t, "ADDED", secretOf("3")), event(t, "MODIFIED", secretOf("4")), event(t, "DELETED", secretOf("5")),
				event(t, "ADDED", secretOf("6")), bookmark(t, "7", true))}, "list 0, watch 7", 2,
		},
		"no streaming lists, and missing": {
			[]func(http.ResponseWriter){fail(unsupported), write(encoded(t, plainList)), fail(apierrors.NewNotFound(schema.GroupResource{}, "a"))},
			"list 0, plain 0, get, watch 5", 2,
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
					stay(w, r, event(t, "MODIFIED", secretOf("30")))
				default:
					stay(w, r, list(t, "30"))
				}
			})
			ref := Ref{Kind: Secret, Namespace: "ns", Name: "a"}
			var told atomic.Int64
			api.Watch(ref, "v", func() { told.Add(1) })
			testkit.Eventually(t, soon, "the last answer", func() bool { return value(&api.registry, ref) == "30" })
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(asked, ", "); got != test.want {
				t.Errorf("asked for %q, want %q", got, test.want)
			}
			if told.Load() != test.told {
				t.Errorf("told of %d changes, want %d", told.Load(), test.told)
			}
		})
	}
}

// TestNewest plays an API server whose cache is behind: only who asks for the newest gets it, even of an object that is watched already.
func TestNewest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// plainLists: it has no streaming lists. missing: the object has been deleted.
		plainLists, missing bool
		want                string
	}{
		"changed":                         {false, false, "list "},
		"deleted":                         {false, true, "list "},
		"changed, without streaming ones": {true, false, "list , plain , watch 9"},
		"deleted, without streaming ones": {true, true, "list , plain , watch 9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ref := Ref{Kind: Secret, Namespace: "ns", Name: "a"}
			newest := ref
			newest.Newest = true
			var mu sync.Mutex
			var asked []string
			api := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
				what := askedFor(r)
				if what == "list 0" {
					stay(w, r, list(t, "3"))
					return
				}
				mu.Lock()
				asked = append(asked, what)
				mu.Unlock()
				items, events := []corev1.Secret{*secretOf("8")}, list(t, "9")
				if test.missing {
					items, events = nil, bookmark(t, "9", true)
				}
				switch {
				case strings.HasPrefix(what, "watch"):
					stay(w, r, bookmark(t, "9", false))
				case strings.HasPrefix(what, "plain"):
					_, _ = w.Write(encoded(t, &corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "9"}, Items: items}))
				case test.plainLists:
					refuse(t, w, apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
				default:
					stay(w, r, events)
				}
			})
			api.Watch(ref, "follows", func() {})
			waitKnown(t, &api.registry, ref)
			api.Watch(newest, "looks once", func() {})
			waitKnown(t, &api.registry, newest)
			if c, err := api.Get(newest); test.missing != errors.Is(err, ErrNotFound) || !test.missing && (err != nil || string(c.Data["key"]) == "3") {
				t.Errorf("the newest is %s, %v", c.Data, err)
			}
			if got := value(&api.registry, ref); got != "3" {
				t.Errorf("who follows got %q", got)
			}
			testkit.Eventually(t, soon, "the requests "+test.want, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return strings.Join(asked, ", ") == test.want
			})
			api.Unwatch(newest, "looks once")
			if n := api.Watched(); n != 1 {
				t.Errorf("%d objects are watched, want 1", n)
			}
		})
	}
}

// askedFor says in a word and a version what a request is.
func askedFor(r *http.Request) string {
	query := r.URL.Query()
	switch version := query.Get("resourceVersion"); {
	case !query.Has("fieldSelector"):
		return "get"
	case query.Get("watch") == "":
		return "plain " + version
	case query.Get("sendInitialEvents") == "true":
		return "list " + version
	default:
		return "watch " + version
	}
}

// TestStall has the server be there and say nothing.
func TestStall(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"no answer":                 func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"an answer without content": func(w http.ResponseWriter, r *http.Request) { stay(w, r, nil) },
		"half an event":             func(w http.ResponseWriter, r *http.Request) { stay(w, r, list(t, "1")[:50]) },
		"a list without an end":     func(w http.ResponseWriter, r *http.Request) { stay(w, r, event(t, "ADDED", secretOf("1"))) },
		"no answer to the question after the list": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("watch") {
				stay(w, r, bookmark(t, "1", true))
			}
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := serve(t, Options{}, handler)
			api.patience = 50 * time.Millisecond
			ref := Ref{Kind: Secret, Namespace: "ns", Name: "a"}
			api.Watch(ref, "v", func() {})
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

// TestGrace has the Node authorizer not know of the pod.
func TestGrace(t *testing.T) {
	t.Parallel()
	ref := Ref{Kind: Secret, Namespace: "ns", Name: "a"}
	t.Run("for a moment", func(t *testing.T) {
		t.Parallel()
		var asked, told atomic.Int64
		api := serve(t, Options{Node: "node-1"}, func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Impersonate-User"); got != "system:node:node-1" {
				t.Errorf("acts as %q", got)
			}
			if asked.Add(1) <= 3 {
				refuse(t, w, forbidden())
				return
			}
			stay(w, r, list(t, "1"))
		})
		api.Watch(ref, "v", func() { told.Add(1) })
		waitKnown(t, &api.registry, ref)
		if got := value(&api.registry, ref); got != "1" || told.Load() != 1 {
			t.Errorf("%s, told %d times; want the content as the first verdict", got, told.Load())
		}
	})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Int64
		api := serve(t, Options{Node: "node-1"}, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			refuse(t, w, forbidden())
		})
		start := time.Now()
		api.Watch(ref, "v", func() {})
		waitKnown(t, &api.registry, ref)
		took := time.Since(start)
		_, err := api.Get(ref)
		if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "no relationship found; with access node the pod must declare") {
			t.Errorf("error %v", err)
		}
		if n := asked.Load(); took < grace || n < 3 || n > 20 {
			t.Errorf("%d requests, verdict after %v", n, took)
		}
	})
	t.Run("not for who acts as itself", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Int64
		other := serve(t, Options{}, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			refuse(t, w, forbidden())
		})
		verdict := make(chan int64, 1)
		other.Watch(ref, "v", func() {
			select {
			case verdict <- asked.Load():
			default:
			}
		})
		waitKnown(t, &other.registry, ref)
		if _, err := other.Get(ref); !errors.Is(err, ErrForbidden) {
			t.Errorf("error %v", err)
		}
		if n := <-verdict; n != 1 {
			t.Errorf("the verdict came after %d requests, want the first", n)
		}
	})
}

// TestRefusalOfWhatWasSeen has an API server start anew: it refuses for a moment, or for good.
func TestRefusalOfWhatWasSeen(t *testing.T) {
	w := &watcher{api: &API{}, object: newObject(Ref{Kind: Secret, Namespace: "ns", Name: "a"})}
	told := 0
	w.object.hold("v", func() { told++ })
	verdict := func(want error, tells int) {
		t.Helper()
		if _, err := w.object.get(); !errors.Is(err, want) || told != tells {
			t.Errorf("%v, told %d times; want %v, %d", err, told, want, tells)
		}
	}
	refusal := func() {
		w.answered = time.Time{}
		w.pauseAfter(forbidden())
	}
	w.found(Content{ResourceVersion: "1"})
	w.object.known = make(chan struct{})
	refusal()
	<-w.object.known // who waits gets what was seen
	verdict(nil, 1)
	w.works() // it was a moment
	w.object.awaySince = time.Now().Add(-time.Hour)
	refusal() // nor does a time count in which it was away and did not refuse
	verdict(nil, 1)
	w.refused = time.Now().Add(-tolerated)
	refusal()
	verdict(ErrForbidden, 2)
	w.found(Content{ResourceVersion: "1"})
	verdict(nil, 3)
	// Who never saw it is told at once.
	w = &watcher{api: &API{}, object: newObject(Ref{Kind: Secret, Namespace: "ns", Name: "a"})}
	refusal()
	verdict(ErrForbidden, 3)
}

// TestPauses asks the loop for its pauses, without making them.
func TestPauses(t *testing.T) {
	w := &watcher{api: &API{}, object: newObject(Ref{Kind: Secret, Namespace: "ns", Name: "a"})}
	within := func(what string, got, least, most time.Duration) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s: %v, want %v to %v", what, got, least, most)
		}
	}
	failure := errors.New("away")
	for n, most := range []time.Duration{100, 300, 900, 2700, 8100, 15000, 15000} {
		most *= time.Millisecond
		within(fmt.Sprintf("pause %d", n+1), w.pauseAfter(failure), most/2, most)
	}
	w.paused = maxPause
	for n, most := range []time.Duration{3, 9, 15, 15, 45, 135, 300, 300} {
		if n == 4 {
			w.refused = time.Now().Add(-refusedLong)
		}
		most *= time.Second
		within(fmt.Sprintf("refused %d", n+1), w.pauseAfter(forbidden()), most/2, most)
	}
	within("away, after that", w.pauseAfter(failure), maxPause/2, maxPause)
	within("refused again", w.pauseAfter(forbidden()), 3*maxPause/2, 3*maxPause)
	w.works()
	w.answered = time.Time{}
	within("refused anew", w.pauseAfter(forbidden()), 3*backAgain/2, 3*backAgain)
	gone := apierrors.NewResourceExpired("too old")
	w.paused, w.version, w.resumed = maxPause, "1", true
	within("back, with another history", w.pauseAfter(gone), 3*backAgain/2, 3*backAgain)
	w.paused, w.version, w.resumed = maxPause, "1", false
	within("a version that is too old as soon as it was read", w.pauseAfter(gone), maxPause/2, maxPause)
	slow := func(seconds int) error { return apierrors.NewTooManyRequests("slow down", seconds) }
	w.paused = 0
	within("asked for 3 s", w.pauseAfter(slow(3)), 3050*time.Millisecond, 3100*time.Millisecond)
	w.paused = 0
	within("asked for a year", w.pauseAfter(slow(365*86400)), maxPause, maxPause+firstPause)
	w.paused = 0
	within("asked for nonsense", w.pauseAfter(slow(-5)), firstPause/2, firstPause)
	w.paused, w.answered = maxPause, time.Now().Add(-lasting/2)
	within("after a short watch", w.pauseAfter(nil), maxPause/2, maxPause)
	w.answered = time.Now().Add(-lasting)
	within("after one that lasted", w.pauseAfter(nil), firstPause/2, firstPause)
}

// TestLogOfChanges: a line for each change of state, however often it is tried. It takes over klog, so it is not parallel.
func TestLogOfChanges(t *testing.T) {
	log := testkit.LogOf(t, 0)
	w := &watcher{api: &API{}, object: newObject(Ref{Kind: Secret, Namespace: "ns", Name: "a"})}
	unavailable := apierrors.NewServiceUnavailable("later")
	for _, step := range []func(){
		func() { w.found(Content{ResourceVersion: "1"}) },
		func() { w.pauseAfter(io.EOF) }, func() { w.object.awaySince = time.Now().Add(-tolerated) }, // a line only now
		func() { w.pauseAfter(unavailable) }, func() { w.pauseAfter(unavailable) }, func() { w.pauseAfter(io.EOF) },
		func() { w.pauseAfter(forbidden()) }, func() { w.refused = time.Now().Add(-tolerated) }, // a line only now
		func() { w.pauseAfter(forbidden()) }, func() { w.pauseAfter(forbidden()) },
		func() { w.found(Content{ResourceVersion: "1"}) }, func() { w.found(Content{ResourceVersion: "2"}) }, w.works,
		func() { w.missing("3") },
	} {
		w.answered = time.Time{}
		step()
	}
	var lines []string
	for line := range strings.Lines(log.Text()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), "] ")
		lines = append(lines, line)
	}
	want := []string{
		`"Object can't be read" object="Secret \"ns/a\"" reason="can't be read now" detail="later"`,
		`"Object can't be read" object="Secret \"ns/a\"" reason="forbidden" detail="secrets \"a\" is forbidden: no relationship found; let the driver read it:`,
		`"Object can be read again" object="Secret \"ns/a\""`,
	}
	if len(lines) != len(want) {
		t.Fatalf("log:\n%s", strings.Join(lines, "\n"))
	}
	for n := range want {
		if !strings.HasPrefix(lines[n], want[n]) {
			t.Errorf("line %d: %s, want %s", n+1, lines[n], want[n])
		}
	}
}

// TestImmutableRecheck deletes an immutable object that is held, and makes it anew.
func TestImmutableRecheck(t *testing.T) {
	t.Parallel()
	ref := Ref{Kind: Secret, Namespace: "ns", Name: "a"}
	var version atomic.Pointer[string]
	var asked atomic.Int64
	set := func(v string) { version.Store(&v) }
	set("1")
	yes := true
	var urls sync.Map
	api := serve(t, Options{ImmutableRecheck: time.Second}, func(w http.ResponseWriter, r *http.Request) {
		urls.Store(asked.Add(1), r.URL.Query())
		s := secretOf(*version.Load())
		s.Immutable = &yes
		stay(w, r, append(event(t, "ADDED", s), bookmark(t, s.ResourceVersion, true)...))
	})
	var told atomic.Int64
	api.Watch(ref, "one", func() { told.Add(1) })
	waitKnown(t, &api.registry, ref)
	set("2")
	testkit.Eventually(t, soon, "a look to find the new object", func() bool { return value(&api.registry, ref) == "2" })
	if n := asked.Load(); n != 2 || told.Load() != 2 {
		t.Errorf("%d requests, told %d times; want 2 of each", n, told.Load())
	}
	query, _ := urls.Load(int64(2))
	if got := query.(url.Values).Get("resourceVersion"); got != "" {
		t.Errorf("the second request was for version %q, want the newest", got)
	}
	api.recheck = time.Hour
	o := api.object(ref)
	testkit.Eventually(t, soon, "the watch to end", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return !o.resting.IsZero()
	})
	set("3")
	api.Watch(ref, "two", func() {})
	waitKnown(t, &api.registry, ref)
	if got := value(&api.registry, ref); got != "3" || asked.Load() != 3 {
		t.Errorf("a new holder got %s after %d requests, want 3 and 3", got, asked.Load())
	}
}

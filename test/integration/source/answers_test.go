// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// TestWithoutStreamingLists uses an API server that refuses sendInitialEvents, like one without the feature.
func TestWithoutStreamingLists(t *testing.T) {
	const refusal = `ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is ` +
		`forbidden for watch unless the WatchList feature gate is enabled`
	for name, refuse := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"422 Invalid":     faultproxy.Status(422, metav1.StatusReasonInvalid, refusal),
		"400 Bad Request": faultproxy.Status(400, metav1.StatusReasonBadRequest, refusal),
	} {
		t.Run(name, func(t *testing.T) {
			admin := newClient(t)
			admin.create(t, secret("fallback", "one"))
			t.Cleanup(func() { cleanUp(admin, secret("fallback", "")) })
			p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
			p.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				return r.URL.Query().Has("sendInitialEvents") && refuse(w, r)
			})
			api := newAPI(t, p.Config())
			ref := secretRef("fallback")
			changes := watched(t, api, ref)
			if got := value(api, ref); got != "one" {
				t.Fatalf("content %q", got)
			}
			testkit.Eventually(t, soon, "the watch after the list", func() bool { return p.Watches() == 1 })
			if asked := p.Asked(); asked != 3 {
				t.Errorf("%d requests, want 3: refused, get, watch", asked)
			}
			admin.update(t, secret("fallback", "two"))
			waitValue(t, api, ref, soon, "two")
			admin.delete(t, secret("fallback", ""))
			testkit.Eventually(t, soon, "the deletion to be seen", func() bool {
				_, err := api.Get(ref)
				return errors.Is(err, source.ErrNotFound)
			})
			if changes.Load() != 3 {
				t.Errorf("%d notifications, want 3", changes.Load())
			}

			missing := secretRef("fallback-missing")
			watched(t, api, missing)
			if _, err := api.Get(missing); !errors.Is(err, source.ErrNotFound) {
				t.Errorf("error %v, want %v", err, source.ErrNotFound)
			}
			testkit.Eventually(t, soon, "the watch of the missing object", func() bool { return p.Watches() == 2 })
			admin.create(t, secret("fallback-missing", "one"))
			t.Cleanup(func() { cleanUp(admin, secret("fallback-missing", "")) })
			waitValue(t, api, missing, soon, "one")
		})
	}
}

// Without streaming lists, the object can be created in the moment between the get and the watch.
func TestCreatedBetweenGetAndWatch(t *testing.T) {
	admin := newClient(t)
	t.Cleanup(func() { cleanUp(admin, secret("created-between", "")) })
	p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
	var created atomic.Bool
	p.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("sendInitialEvents") {
			return faultproxy.Status(422, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")(w, r)
		}
		if r.URL.Query().Has("watch") && created.CompareAndSwap(false, true) {
			admin.create(t, secret("created-between", "one"))
		}
		return false
	})
	api := newAPI(t, p.Config())
	ref := secretRef("created-between")
	watched(t, api, ref)
	waitValue(t, api, ref, soon, "one")
	if asked := p.Asked(); asked != 3 {
		t.Errorf("%d requests, want 3: refused, get, watch", asked)
	}
}

// Without streaming lists, the object can be removed in the moment between the get and the watch.
func TestRemovedBetweenGetAndWatch(t *testing.T) {
	admin := newClient(t)
	admin.create(t, secret("removed-between", "one"))
	t.Cleanup(func() { cleanUp(admin, secret("removed-between", "")) })
	p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
	var removed atomic.Bool
	p.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("sendInitialEvents") {
			return faultproxy.Status(422, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden")(w, r)
		}
		if r.URL.Query().Has("watch") && removed.CompareAndSwap(false, true) {
			admin.delete(t, secret("removed-between", ""))
		}
		return false
	})
	api := newAPI(t, p.Config())
	ref := secretRef("removed-between")
	watched(t, api, ref)
	testkit.Eventually(t, soon, "the deletion to be seen", func() bool {
		_, err := api.Get(ref)
		return errors.Is(err, source.ErrNotFound)
	})
	if !removed.Load() {
		t.Error("it was not removed between the get and the watch")
	}
	admin.create(t, secret("removed-between", "two"))
	waitValue(t, api, ref, soon, "two")
	reliability.Shown(t, "F-34", "between get and watch, where the API server has no streaming lists")
}

// TestGone uses an API server that ends a watch with 410, as after a compaction of etcd.
func TestGone(t *testing.T) {
	for name, test := range map[string]struct {
		object string
		// between is called between two watches.
		between func(client)
		want    string
	}{
		"nothing changed meanwhile": {"gone-1", func(client) {}, "one"},
		"a change meanwhile arrives": {
			"gone-2", func(c client) { c.update(t, secret("gone-2", "two")) }, "two",
		},
	} {
		t.Run(name, func(t *testing.T) {
			admin := newClient(t)
			admin.create(t, secret(test.object, "one"))
			t.Cleanup(func() { cleanUp(admin, secret(test.object, "")) })
			p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
			api := newAPI(t, p.Config())
			ref := secretRef(test.object)
			var bad atomic.Pointer[string]
			api.Subscribe(ref, subscriber, false, func() {})
			waitKnown(t, api, ref)
			// From here on, Get must return the old content or the new one.
			stop := make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if got := value(api, ref); got != "one" && got != test.want {
						bad.Store(&got)
					}
				}
			}()
			asked := p.Asked()
			p.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				switch r.URL.Query().Get("resourceVersion") {
				case "":
					return false
				case "0":
					t.Error("any version was asked for: it may be older than what was seen")
				}
				// The versions of the watch and of the list are both too old.
				return faultproxy.Status(410, metav1.StatusReasonExpired, "too old resource version: 1 (2)")(w, r)
			})
			test.between(admin)
			if p.Say(faultproxy.ErrorEvent(410, metav1.StatusReasonExpired, "too old resource version: 1 (2)")) != 1 {
				t.Fatal("no watch to tell")
			}
			p.Say(nil) // after the event
			testkit.Eventually(t, soon, "a new watch", func() bool { return p.Watches() == 1 })
			waitValue(t, api, ref, soon, test.want)
			close(stop)
			<-ended
			if b := bad.Load(); b != nil {
				t.Errorf("Get gave %q in between", *b)
			}
			if more := p.Asked() - asked; more > 3 {
				t.Errorf("%d requests, want at most 3", more)
			}
			// The new watch works.
			p.Answer(nil)
			admin.update(t, secret(test.object, "three"))
			waitValue(t, api, ref, soon, "three")
		})
	}
}

// TestAnswers uses an API server with wrong answers of all kinds, first for a watcher without content, and then for one
// with content.
func TestAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		want   error
		says   string
		// most is the largest number of requests in the first second, which has at most four rounds.
		most int
	}{
		"429": {faultproxy.Status(429, metav1.StatusReasonTooManyRequests, "slow down"), source.ErrUnavailable, "slow down",
			4},
		"429 with Retry-After": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "1")
			return faultproxy.Status(429, metav1.StatusReasonTooManyRequests, "slow down")(w, r)
		}, source.ErrUnavailable, "slow down", 4},
		"500": {faultproxy.Status(500, metav1.StatusReasonInternalError, "it broke"), source.ErrUnavailable, "it broke", 4},
		"503 with Retry-After": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "1")
			return faultproxy.Status(503, metav1.StatusReasonServiceUnavailable, "not now")(w, r)
		}, source.ErrUnavailable, "not now", 4},
		"504 too large resource version": {
			faultproxy.TooLarge,
			source.ErrUnavailable, "Too large resource version", 2, // the answer requests a pause of a second
		},
		// a get after each
		"400 to everything": {faultproxy.Status(400, metav1.StatusReasonBadRequest, "what?"), source.ErrUnavailable,
			"what?", 8},
		"410 to everything": {faultproxy.Status(410, metav1.StatusReasonExpired, "too old"), source.ErrUnavailable, "too old",
			4},
		"401": {faultproxy.Status(401, metav1.StatusReasonUnauthorized, "who?"), source.ErrUnavailable, "who?", 4},
		"403": {faultproxy.Status(403, metav1.StatusReasonForbidden, "not you"), source.ErrForbidden, "not you", 4},
		"404": {faultproxy.Status(404, metav1.StatusReasonNotFound, "no such path"), source.ErrUnavailable, "no such path",
			4},
		"a page of HTML": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintln(w, "<html>Please log in</html>")
			return true
		}, source.ErrUnavailable, "", 4},
		"a gateway's page": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprintln(w, "<html>Bad\ngateway</html>")
			return true
		}, source.ErrUnavailable, "", 4},
		"JSON": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintln(w, `{"type":"ADDED","object":{"kind":"Secret","apiVersion":"v1"}}`)
			return true
		}, source.ErrUnavailable, "no protobuf", 4},
		"something that is not protobuf": {faultproxy.Protobuf(func(*http.Request) []byte {
			return []byte("\x00\x00\x00\x05hello")
		}), source.ErrUnavailable, "understood", 4},
		"an event that ends in the middle": {faultproxy.Protobuf(func(*http.Request) []byte {
			whole := faultproxy.Event("ADDED", secret("x", "one"))
			return whole[:len(whole)-5]
		}), source.ErrUnavailable, "breaks off", 4},
		"an object of another kind": {faultproxy.Protobuf(func(r *http.Request) []byte {
			if r.URL.Query().Get("watch") != "" {
				return faultproxy.Event("ADDED", &corev1.Pod{})
			}
			return faultproxy.Encoded(&corev1.Pod{})
		}), source.ErrUnavailable, "understood", 4},
		"nothing": {faultproxy.Protobuf(func(*http.Request) []byte { return nil }), source.ErrUnavailable,
			"breaks off", 4},
		"a status without a failure": {faultproxy.Status(200, "", ""), source.ErrUnavailable, "", 4},
		"410, as an event, to everything": {faultproxy.Protobuf(func(*http.Request) []byte {
			return faultproxy.ErrorEvent(410, metav1.StatusReasonExpired, "too old")
		}), source.ErrUnavailable, "too old", 4},
		"a list that is not complete": {faultproxy.Protobuf(func(*http.Request) []byte {
			return faultproxy.Event("ADDED", secret("x", "one"))
		}),
			source.ErrUnavailable, "breaks off", 4},
		"a closed connection": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
			source.ErrUnavailable, "EOF", 4},
		"a reset connection": {func(w http.ResponseWriter, _ *http.Request) bool {
			connection, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			if tcp, ok := connection.(interface{ SetLinger(int) error }); ok {
				_ = tcp.SetLinger(0)
			}
			connection.Close()
			return true
		}, source.ErrUnavailable, "reset", 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := "answers-" + strings.NewReplacer(" ", "-", "'", "", ",", "").Replace(strings.ToLower(name))
			admin := newClient(t)
			admin.create(t, secret(object, "one"))
			t.Cleanup(func() { cleanUp(admin, secret(object, "")) })
			p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
			p.Answer(test.answer)
			api := newAPI(t, p.Config())
			ref := secretRef(object)

			start := time.Now()
			watched(t, api, ref)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("the first result took %v", took)
			}
			_, err := api.Get(ref)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %v that says %q", err, test.want, test.says)
			}
			if strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
			t.Logf("after %v: %v", time.Since(start).Round(time.Millisecond), err)
			asked := p.Asked()
			time.Sleep(time.Until(start.Add(time.Second))) // to count the requests until then
			if n := p.Asked(); n > test.most {
				t.Errorf("%d requests in the first second (%d until the first result), want at most %d", n, asked, test.most)
			}

			p.Answer(nil)
			start = time.Now()
			waitValue(t, api, ref, time.Minute, "one")
			t.Logf("recovered in %v", time.Since(start).Round(time.Millisecond))

			// The source is new, because the pauses of the other one have grown.
			closeSoon(t, api)
			api = newAPI(t, p.Config())
			watched(t, api, ref)
			testkit.Eventually(t, soon, "the watch", func() bool { return p.Watches() == 1 })
			p.Answer(test.answer)
			asked = p.Asked()
			p.Say(nil)
			testkit.Eventually(t, soon, "another attempt", func() bool { return p.Asked() > asked })
			switch content, err := api.Get(ref); {
			case test.want == source.ErrForbidden:
				// The refusal counts after ten seconds.
				testkit.Eventually(t, time.Minute, "the refusal", func() bool {
					_, err := api.Get(ref)
					return errors.Is(err, source.ErrForbidden)
				})
			case err != nil || string(content.Data["key"]) != "one":
				t.Errorf("the seen content is lost: %q, error %v", content.Data, err)
			}
			closeSoon(t, api)
		})
	}
}

// TestErrorEvents makes an open watch fail while the API server works.
func TestErrorEvents(t *testing.T) {
	for name, frame := range map[string][]byte{
		"500":                          faultproxy.ErrorEvent(500, metav1.StatusReasonInternalError, "etcd is away"),
		"403":                          faultproxy.ErrorEvent(403, metav1.StatusReasonForbidden, "not any more"),
		"504":                          faultproxy.ErrorEvent(504, metav1.StatusReasonTimeout, "timed out"),
		"410":                          faultproxy.ErrorEvent(410, metav1.StatusReasonGone, "gone"),
		"429":                          faultproxy.ErrorEvent(429, metav1.StatusReasonTooManyRequests, "slow down"),
		"an event of no known type":    faultproxy.Event("RENAMED", secret("x", "three")),
		"an object of another kind":    faultproxy.Event("MODIFIED", &corev1.Pod{}),
		"something that is no event":   []byte("\x00\x00\x00\x05hello"),
		"something that has no length": []byte(`{"type":`),
		"nothing":                      nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := "events-" + strings.ReplaceAll(strings.ToLower(name), " ", "-")
			admin := newClient(t)
			admin.create(t, secret(object, "one"))
			t.Cleanup(func() { cleanUp(admin, secret(object, "")) })
			p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
			api := newAPI(t, p.Config())
			ref := secretRef(object)
			changes := watched(t, api, ref)
			asked := p.Asked()
			p.Say(frame)
			p.Say(nil)
			admin.update(t, secret(object, "two"))
			waitValue(t, api, ref, 20*time.Second, "two")
			if n := p.Asked() - asked; n > 3 {
				t.Errorf("%d requests, want at most 3", n)
			}
			if changes.Load() != 2 {
				t.Errorf("%d notifications, want 2", changes.Load())
			}
			p.Say(frame)
			p.Say(nil)
			closeSoon(t, api)
		})
	}
}

// TestFailedConnections uses connections that fail. client-go takes some of the errors for the end of a watch, and
// would retry.
func TestFailedConnections(t *testing.T) {
	for name, failure := range map[string]error{
		"a timeout":                   os.ErrDeadlineExceeded,
		"a connection that is closed": io.EOF,
		"a connection that is refused": &net.OpError{
			Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			config := controlPlane.AdminConfig()
			config.Wrap(func(http.RoundTripper) http.RoundTripper {
				return roundTripper(func(*http.Request) (*http.Response, error) {
					asked.Add(1)
					return nil, failure
				})
			})
			api := newAPI(t, config)
			ref := secretRef("any")
			var first atomic.Int64 // the number of requests at the first notification, which precedes the pause
			api.Subscribe(ref, subscriber, false, func() { first.CompareAndSwap(0, asked.Load()) })
			t.Cleanup(func() { api.Unsubscribe(ref, subscriber) })
			waitKnown(t, api, ref)
			_, err := api.Get(ref)
			if !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), failure.Error()) {
				t.Errorf("error %v, want %v that says %v", err, source.ErrUnavailable, failure)
			}
			if strings.Contains(fmt.Sprint(err), "https:") {
				t.Errorf("error %v has the URL", err)
			}
			testkit.Eventually(t, soon, "the first notification", func() bool { return first.Load() != 0 })
			if n := first.Load(); n != 1 {
				t.Errorf("%d requests before the first notification, want 1", n)
			}
			closeSoon(t, api)
		})
	}
}

// TestCompression checks that answers are not compressed, because a decompressor would take too much memory for each
// watch.
func TestCompression(t *testing.T) {
	admin := newClient(t)
	admin.create(t, secret("not-compressed", "one"))
	t.Cleanup(func() { cleanUp(admin, secret("not-compressed", "")) })
	var compressed atomic.Bool
	config := controlPlane.AdminConfig()
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			response, err := next.RoundTrip(request)
			compressed.Store(err == nil && response.Uncompressed)
			return response, err
		})
	})
	watched(t, newAPI(t, config), secretRef("not-compressed"))
	if compressed.Load() {
		t.Error("the answer was compressed")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

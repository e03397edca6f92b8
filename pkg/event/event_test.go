// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// request is what the API server got: a POST's Event, or a PATCH's fields.
type request struct {
	method, path string
	event        corev1.Event
	patch        map[string]any
}

// apiServer is a fake that records requests; that real ones take them is shown by test/integration/driver.
type apiServer struct {
	t      *testing.T
	codecs serializer.CodecFactory

	mu       sync.Mutex
	requests []request
	// answer is the status code; 0 is 201.
	answer int
}

func newAPIServer(t *testing.T) (*apiServer, rest.Interface) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	s := &apiServer{t: t, codecs: serializer.NewCodecFactory(scheme)}
	client, err := rest.RESTClientForConfigAndClient(&rest.Config{
		Host: "http://api.invalid", APIPath: "/api", QPS: -1,
		ContentConfig: rest.ContentConfig{GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: s.codecs.WithoutConversion(), ContentType: runtime.ContentTypeProtobuf},
	}, &http.Client{Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}

// RoundTrip implements http.RoundTripper.
func (s *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	got := request{method: r.Method, path: r.URL.Path}
	if r.Method == http.MethodPatch {
		err = json.Unmarshal(body, &got.patch)
	} else {
		_, _, err = s.codecs.UniversalDeserializer().Decode(body, nil, &got.event)
	}
	if err != nil {
		s.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, got)
	code := s.answer
	if code == 0 {
		code = http.StatusCreated
	}
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

func (s *apiServer) take() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.requests
	s.requests = nil
	return taken
}

func (s *apiServer) answers(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = code
}

func pod(name string) Pod { return Pod{Namespace: "team", Name: name, UID: "uid-" + name} }

// run runs a Recorder in a bubble where time passes at will.
func run(t *testing.T, test func(*testing.T, *Recorder, *apiServer)) {
	synctest.Test(t, func(t *testing.T) {
		server, client := newAPIServer(t)
		r := New(client, "fsuser.csi.io", "node-1")
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.Run(ctx) })
		test(t, r, server)
		cancel()
		running.Wait()
	})
}

func TestAnEventIsAboutThePodInThePodsNamespace(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		r.Record(Event{Pod: pod("web"), Type: Warning, Reason: "R", Message: "m"})
		synctest.Wait()
		got := s.take()
		if len(got) != 1 || got[0].method != http.MethodPost || got[0].path != "/api/v1/namespaces/team/events" {
			t.Fatalf("%+v", got)
		}
		e := got[0].event
		if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.Name != "web" || e.InvolvedObject.UID != "uid-web" || e.InvolvedObject.Namespace != "team" ||
			e.Type != "Warning" || e.Reason != "R" || e.Message != "m" || e.Count != 1 || e.Source.Component != "fsuser.csi.io" || e.Source.Host != "node-1" ||
			!strings.HasPrefix(e.Name, "web.") || e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() {
			t.Errorf("%+v", e)
		}
	})
}

func TestLikeEventsAreCountedAndWrittenSeldom(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		record := func(times int) {
			for range times {
				r.Record(Event{Pod: pod("web"), Type: Warning, Reason: "R", Message: "again"})
				synctest.Wait()
			}
		}
		record(100)
		first := s.take()
		if len(first) != 1 {
			t.Fatalf("100 like events in no time made %d requests, want 1", len(first))
		}
		time.Sleep(quiet) // the bubble's time
		record(1)
		second := s.take()
		if len(second) != 1 || second[0].method != http.MethodPatch || !strings.HasSuffix(second[0].path, "/"+first[0].event.Name) || second[0].patch["count"] != 101.0 {
			t.Fatalf("%+v", second)
		}

		// Another pod, or another reason, is another Event.
		r.Record(Event{Pod: pod("db"), Type: Warning, Reason: "R"})
		r.Record(Event{Pod: pod("web"), Type: Normal, Reason: "S"})
		synctest.Wait()
		if got := s.take(); len(got) != 2 || got[0].method != http.MethodPost || got[1].method != http.MethodPost {
			t.Errorf("%+v", got)
		}

		// The API server has forgotten it: it is made anew.
		time.Sleep(quiet)
		s.answers(http.StatusNotFound)
		record(1)
		if got := s.take(); len(got) != 2 || got[0].method != http.MethodPatch || got[1].method != http.MethodPost {
			t.Errorf("%+v", got)
		}
	})
}

func TestWhatCannotBeWrittenIsDroppedAndCounted(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		s.answers(http.StatusForbidden)
		r.Record(Event{Pod: pod("web"), Reason: "R"})
		synctest.Wait()
		if n := r.Dropped(); n != 1 {
			t.Errorf("%d dropped, want 1", n)
		}
	})
	_, client := newAPIServer(t)
	r := New(client, "c", "h") // nobody runs it
	for range queued + 3 {
		r.Record(Event{Pod: pod("web"), Reason: "R"})
	}
	if n := r.Dropped(); n != 3 {
		t.Errorf("%d dropped with a full queue, want 3", n)
	}
}

func TestLongTextsAreCutBetweenCharacters(t *testing.T) {
	for _, n := range []int{0, 1, 10, 1023, 1024, 1025, 4000} {
		for _, char := range []string{"x", "ü", "€"} {
			got := truncate(strings.Repeat(char, n), maxMessage)
			if len(got) > maxMessage || !utf8.ValidString(got) || n*len(char) <= maxMessage && got != strings.Repeat(char, n) {
				t.Errorf("%d times %q: %d bytes, valid %v", n, char, len(got), utf8.ValidString(got))
			}
		}
	}
}

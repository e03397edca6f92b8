// SPDX-License-Identifier: Apache-2.0

package event

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// request is a request to the API server: the Event of a POST, or the fields of a PATCH.
type request struct {
	method, path string
	event        corev1.Event
	patch        map[string]any
}

// apiServer is a fake that records requests. test/integration/driver shows that real API servers accept them.
type apiServer struct {
	t      *testing.T
	codecs serializer.CodecFactory

	mu       sync.Mutex
	requests []request
	// answer is the status code; 0 is 201.
	answer int
	// text is the body of an answer.
	text string
	// broken makes a request panic.
	broken bool
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
		ContentConfig: rest.ContentConfig{GroupVersion: &corev1.SchemeGroupVersion,
			NegotiatedSerializer: s.codecs.WithoutConversion(), ContentType: runtime.ContentTypeProtobuf},
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
	if s.broken {
		panic("the secret value")
	}
	s.requests = append(s.requests, got)
	code := s.answer
	if code == 0 {
		code = http.StatusCreated
	}
	answer := io.NopCloser(strings.NewReader(s.text))
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: answer, Request: r}, nil
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

func (s *apiServer) breaks(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func pod(name string) Pod { return Pod{Namespace: "team", Name: name, UID: "uid-" + name} }

// run runs a Recorder in a synctest bubble.
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
		if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.Name != "web" || e.InvolvedObject.UID != "uid-web" ||
			e.InvolvedObject.Namespace != "team" || e.Type != "Warning" || e.Reason != "R" || e.Message != "m" || e.Count != 1 ||
			e.Source.Component != "fsuser.csi.io" || e.Source.Host != "node-1" ||
			!strings.HasPrefix(e.Name, "web.") || e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() {
			t.Errorf("%+v", e)
		}
	})
}

func TestAPanicCostsOneEvent(t *testing.T) {
	logged := testkit.LogOf(t, 5)
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		s.breaks(true)
		r.Record(Event{Pod: pod("web"), Type: Warning, Reason: "First"})
		synctest.Wait()
		s.breaks(false)
		r.Record(Event{Pod: pod("web"), Type: Warning, Reason: "Second"})
		synctest.Wait()
		if got := s.take(); len(got) != 1 || got[0].event.Reason != "Second" || r.Dropped() != 1 {
			t.Errorf("requests %+v, %d Events dropped", got, r.Dropped())
		}
	})
	if text := logged.Text(); !strings.Contains(text, "panicked with a string") ||
		strings.Contains(text, "the secret value") {
		t.Errorf("the log: %s", text)
	}
	reliability.Shown(t, "F-30", "a panic costs one Event")
}

// The name of a pod has up to 253 characters. The name of an Event has the same limit, and adds a unique part.
func TestAnEventOfALongPodNameHasAValidName(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 253), strings.Repeat("a", 199) + "-" + strings.Repeat("b", 53),
		strings.Repeat("a", 199) + ".b"} {
		run(t, func(t *testing.T, r *Recorder, s *apiServer) {
			r.Record(Event{Pod: pod(name), Type: Warning, Reason: "R", Message: strings.Repeat("é", 2000)})
			synctest.Wait()
			e := s.take()[0].event
			if problems := validation.IsDNS1123Subdomain(e.Name); len(problems) > 0 || len(e.Message) > maxMessage {
				t.Errorf("the name %q: %q; %d bytes of message", e.Name, problems, len(e.Message))
			}
		})
	}
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
		time.Sleep(quiet) // This is the time of the bubble.
		synctest.Wait()
		second := s.take()
		if len(second) != 1 || second[0].method != http.MethodPatch ||
			!strings.HasSuffix(second[0].path, "/"+first[0].event.Name) || second[0].patch["count"] != 100.0 {
			t.Fatalf("%+v", second)
		}
		time.Sleep(quiet)
		record(1)
		if third := s.take(); len(third) != 1 || third[0].patch["count"] != 101.0 {
			t.Fatalf("%+v", third)
		}

		// An Event about another pod, or with another reason, is a separate Event.
		r.Record(Event{Pod: pod("db"), Type: Warning, Reason: "R"})
		r.Record(Event{Pod: pod("web"), Type: Normal, Reason: "S"})
		synctest.Wait()
		if got := s.take(); len(got) != 2 || got[0].method != http.MethodPost || got[1].method != http.MethodPost {
			t.Errorf("%+v", got)
		}

		// The API server has deleted the object, so the Recorder makes a new one.
		time.Sleep(quiet)
		s.answers(http.StatusNotFound)
		record(1)
		if got := s.take(); len(got) != 2 || got[0].method != http.MethodPatch || got[1].method != http.MethodPost {
			t.Errorf("%+v", got)
		}
	})
}

// Each Event comes a little more than a second after the previous one, so that no Event comes at the end of a pause.
// The API server shows the result an hour later: each object with its count, the last written one last.
func TestTheLastEventOfAVolumeIsWrittenLast(t *testing.T) {
	failed := func(volume, why string) Event {
		return Event{Pod: pod("web"), Volume: volume, Type: Warning, Reason: "Failed", Message: volume + ": " + why}
	}
	recovered := func(volume string) Event {
		return Event{Pod: pod("web"), Volume: volume, Type: Normal, Reason: "Recovered", Message: volume}
	}
	var flapping []Event
	for range 100 {
		flapping = append(flapping, failed("a", "forbidden"), recovered("a"))
	}
	for _, test := range []struct {
		name   string
		events []Event
		want   []string
		// requests is the largest number of requests.
		requests int
	}{
		{"two volumes of a pod fail together, and each is named", []Event{failed("a", "forbidden"), failed("b", "too large")},
			[]string{"1 Failed a: forbidden", "1 Failed b: too large"}, 2},
		{"one fails again at once", []Event{failed("a", "forbidden"), recovered("a"), failed("a", "forbidden")},
			[]string{"1 Recovered a", "2 Failed a: forbidden"}, 3},
		{"one fails for another reason", []Event{failed("a", "forbidden"), failed("a", "too large")},
			[]string{"2 Failed a: too large"}, 2},
		{"what waits is not written after what came later",
			[]Event{failed("a", "forbidden"), failed("a", "too large"), recovered("a")},
			[]string{"1 Failed a: forbidden", "1 Recovered a"}, 2},
		{"another volume's Event does not replace it",
			[]Event{failed("a", "forbidden"), failed("a", "too large"), recovered("b")},
			[]string{"1 Recovered b", "2 Failed a: too large"}, 3},
		{"it goes on and off for 200 s", flapping, []string{"96 Failed a: forbidden", "100 Recovered a"}, 2 * (200/10 + 1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			run(t, func(t *testing.T, r *Recorder, s *apiServer) {
				for _, e := range test.events {
					r.Record(e)
					time.Sleep(time.Second + time.Millisecond)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				requests := s.take()
				if got := shown(requests); !slices.Equal(got, test.want) || len(requests) > test.requests {
					t.Errorf("%d requests, and the pod shows %q; want %d, and %q", len(requests), got, test.requests, test.want)
				}
			})
		})
	}
}

// shown returns the objects that the requests made, as kubectl shows them.
func shown(requests []request) (texts []string) {
	objects := map[string]corev1.Event{}
	var order []string
	for _, r := range requests {
		e := r.event
		if r.method == http.MethodPatch {
			e = objects[path.Base(r.path)]
			e.Message, e.Count = r.patch["message"].(string), int32(r.patch["count"].(float64))
			order = slices.DeleteFunc(order, func(name string) bool { return name == e.Name })
		}
		objects[e.Name] = e
		order = append(order, e.Name)
	}
	for _, name := range order {
		texts = append(texts, fmt.Sprint(objects[name].Count, " ", objects[name].Reason, " ", objects[name].Message))
	}
	return texts
}

func TestHowMuchIsRememberedIsBounded(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		record := func(from, to int) {
			for n := from; n < to; n++ {
				r.Record(Event{Pod: pod(fmt.Sprint("p-", n)), Reason: "R"})
				synctest.Wait()
			}
		}
		patches := func(all []request) (n int) {
			for _, r := range all {
				if r.method == http.MethodPatch {
					n++
				}
			}
			return n
		}
		record(0, remembered+1)
		s.take()
		// All Events wait except the last one, for which there was no room.
		record(0, remembered+1)
		if got := s.take(); len(got) != 1 || got[0].event.InvolvedObject.Name != fmt.Sprint("p-", remembered) {
			t.Errorf("%d requests, want one for the last pod", len(got))
		}
		time.Sleep(quiet)
		synctest.Wait()
		if got := s.take(); len(got) != remembered || patches(got) != remembered {
			t.Errorf("%d requests, %d of them patches; want %d of what waited", len(got), patches(got), remembered)
		}
		// Old kinds make room.
		time.Sleep(quiet)
		record(remembered, remembered+2)
		time.Sleep(quiet)
		record(remembered, remembered+2)
		if got := s.take(); len(got) != 4 || patches(got) != 2 {
			t.Errorf("%d requests, %d of them patches; want 2 of 4", len(got), patches(got))
		}
	})
}

// TestAnAnswerIsNotRepeated answers like a proxy that returns the request, which contains the driver's token.
func TestAnAnswerIsNotRepeated(t *testing.T) {
	logged := testkit.LogOf(t, 5)
	run(t, func(t *testing.T, r *Recorder, s *apiServer) {
		s.answers(http.StatusInternalServerError)
		s.text = "Authorization: Bearer secret"
		r.Record(Event{Pod: pod("web"), Reason: "R"})
		synctest.Wait()
	})
	if log := logged.Text(); strings.Contains(log, "secret") || !strings.Contains(log, "the server answered 500") {
		t.Errorf("the log: %s", log)
	}
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
	r := New(client, "c", "h") // The Recorder does not run.
	for range queued + 3 {
		r.Record(Event{Pod: pod("web"), Reason: "R"})
	}
	if n := r.Dropped(); n != 3 {
		t.Errorf("%d dropped with a full queue, want 3", n)
	}
}

// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// server answers the reads of a Checker.
type server struct {
	mu     sync.Mutex
	answer error
	reads  int
	events []event.Event
}

func (s *server) read(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	return s.answer
}

func (s *server) record(e event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func (s *server) recorded() []event.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *server) answers(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = err
}

func (s *server) start(t *testing.T) *Checker {
	t.Helper()
	c := New(Config{
		Read:   s.read,
		Events: s.record,
		Pod:    event.Pod{Namespace: "fsuser-csi", Name: "driver", UID: "u"},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { c.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	synctest.Wait()
	return c
}

// after waits for d, and checks the number of reads so far.
func (s *server) after(t *testing.T, d time.Duration, reads int) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads != reads {
		t.Fatalf("%d reads, want %d", s.reads, reads)
	}
}

// shows checks the metric and the status. metric is "absent", "1", or "0" with this reason.
func shows(t *testing.T, c *Checker, metric, reason string) {
	t.Helper()
	got := "absent"
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		got = fmt.Sprint(family.Metric[0].GetGauge().GetValue())
	}
	if got != metric {
		t.Errorf("the metric is %s, want %s", got, metric)
	}
	s := c.Status()
	if (s == nil) != (metric == "absent") || s != nil && (s.Ready != (metric == "1") || s.Reason != reason) {
		t.Errorf("the status is %+v, want the metric %s and the reason %q", s, metric, reason)
	}
}

// lines counts the lines of the log that contain text. klog writes an error once more for each lower severity.
func lines(log *testkit.Log, text string) (n int) {
	for _, line := range slices.Compact(strings.Split(log.Text(), "\n")) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func refusal(detail string) error { return &source.Error{Reason: source.ErrForbidden, Detail: detail} }

func outage() error {
	return &source.Error{Reason: source.ErrUnavailable, Detail: "connection refused"}
}

func TestTheAccessWorksAndIsCheckedEachTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := testkit.LogOf(t, 0)
		var s server
		c := s.start(t)
		shows(t, c, "1", "")
		since := c.Status().Since
		s.after(t, 10*time.Minute-time.Nanosecond, 1)
		s.after(t, time.Nanosecond, 2)
		s.after(t, 10*time.Minute, 3)
		if !c.Status().Since.Equal(since) {
			t.Error("the access has worked since another time")
		}
		if events := s.recorded(); len(events) != 0 || lines(log, "access works") != 1 {
			t.Errorf("Events %+v, log\n%s", events, log.Text())
		}
	})
}

func TestARefusalIsConfirmedAndReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := testkit.LogOf(t, 0)
		s := server{answer: refusal("do this")}
		reason := refusal("do this").Error()
		c := s.start(t)
		shows(t, c, "absent", "")
		s.after(t, 10*time.Second, 2)
		shows(t, c, "0", reason)
		since := c.Status().Since
		s.after(t, time.Minute, 3)
		s.after(t, time.Minute, 4)
		shows(t, c, "0", reason)
		events := s.recorded()
		if len(events) != 3 {
			t.Fatalf("%d Events of 3 checks: %+v", len(events), events)
		}
		want := event.Event{
			Pod: event.Pod{Namespace: "fsuser-csi", Name: "driver", UID: "u"}, Type: event.Warning, Reason: "AccessNotReady",
			Message: "the driver's access does not work: " + reason,
		}
		if events[0] != want {
			t.Errorf("the Event is %+v, want %+v", events[0], want)
		}
		if lines(log, "do this") != 1 {
			t.Errorf("the log does not have the reason once:\n%s", log.Text())
		}

		s.answers(refusal("do that"))
		s.after(t, time.Minute, 5)
		shows(t, c, "0", refusal("do that").Error())
		if !c.Status().Since.Equal(since) || lines(log, "do that") != 1 {
			t.Errorf("another reason: since %v, want %v; log\n%s", c.Status().Since, since, log.Text())
		}

		s.answers(nil)
		s.after(t, time.Minute, 6)
		shows(t, c, "1", "")
		events = s.recorded()
		if e := events[len(events)-1]; e.Type != event.Normal || e.Reason != "AccessReady" {
			t.Errorf("the last Event is %+v", e)
		}
	})
}

// An API server that has just started does not know the rights yet.
func TestASingleRefusalIsNoResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		testkit.LogOf(t, 0)
		var s server
		c := s.start(t)
		s.answers(refusal("not yet"))
		s.after(t, 10*time.Minute, 2)
		shows(t, c, "1", "")
		s.answers(nil)
		s.after(t, 10*time.Second, 3)
		shows(t, c, "1", "")
		s.answers(refusal("no"))
		s.after(t, 10*time.Minute, 4)
		s.answers(outage())
		s.after(t, 10*time.Second, 5)
		s.answers(refusal("no"))
		s.after(t, time.Minute, 6)
		shows(t, c, "1", "") // The check before was not refused.
		if events := s.recorded(); len(events) != 0 {
			t.Errorf("Events %+v", events)
		}
	})
}

func TestAnOutageIsNoResult(t *testing.T) {
	for _, failure := range []error{
		outage(), &source.Error{Reason: source.ErrNotFound}, context.DeadlineExceeded, errors.New("odd"),
	} {
		synctest.Test(t, func(t *testing.T) {
			testkit.LogOf(t, 0)
			s := server{answer: failure}
			c := s.start(t)
			shows(t, c, "absent", "")
			s.after(t, time.Minute, 2)
			shows(t, c, "absent", "")
			s.answers(nil)
			s.after(t, time.Minute, 3)
			shows(t, c, "1", "")
			s.answers(failure)
			s.after(t, 10*time.Minute, 4)
			shows(t, c, "1", "")
			s.answers(refusal("no"))
			s.after(t, time.Minute, 5)
			s.after(t, 10*time.Second, 6)
			refused := refusal("no").Error()
			shows(t, c, "0", refused)
			s.answers(failure)
			s.after(t, time.Minute, 7)
			shows(t, c, "0", refused)
		})
	}
}

func TestWithoutAnObjectToReadNothingIsChecked(t *testing.T) {
	c := New(Config{})
	c.Run(t.Context()) // ends at once
	shows(t, c, "absent", "")
}

// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// machine is a registry without a real source. It has one object with the subscriber "v".
type machine struct {
	registry
	ref Ref
	*object
	// started and ended count the starts and ends of the source. notified counts the calls of changed for "v".
	started, ended, notified int
}

func newMachine() *machine {
	m := &machine{registry: newRegistry(time.Hour), ref: Ref{Kind: attributes.Secret, Namespace: "n", Name: "a"}}
	m.start = func(*object) func() {
		m.started++
		return func() { m.ended++ }
	}
	m.Subscribe(m.ref, "v", false, func() { m.notified++ })
	m.object = m.objects[m.ref]
	return m
}

// starts returns the number of starts while a timer can start the source.
func (m *machine) starts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.started
}

func (m *machine) found(c Content) { m.update(m.object, event{kind: found, content: c}) }
func (m *machine) missing()        { m.update(m.object, event{kind: missing}) }
func (m *machine) connected()      { m.update(m.object, event{kind: connected}) }

// complete is an event: an immutable object has been read.
func (m *machine) complete(c Content) {
	m.found(c)
	m.update(m.object, event{kind: complete})
}

// fail is an event: a request has failed. It returns the pause.
func (m *machine) fail(err error) time.Duration {
	return m.update(m.object, event{kind: ended, err: err, failure: (&API{}).explain(m.ref, err)})
}

// blocked reports whether Wait blocks.
func (m *machine) blocked(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.Wait(ctx, m.ref) // Wait also returns at the end of ctx.
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pending != nil
}

// TestStates applies one event after the other, and checks the result of Get and whether the subscriber is notified.
func TestStates(t *testing.T) {
	one := Content{UID: "u", ResourceVersion: "1", Data: map[string][]byte{"key": []byte("one")}}
	two := Content{UID: "u", ResourceVersion: "2", Data: map[string][]byte{"key": []byte("two")}}
	type step struct {
		do       func(*machine)
		want     string // the content, or the reason of the error
		notifies bool
	}
	found := func(c Content) func(*machine) { return func(m *machine) { m.found(c) } }
	unavailable := func(m *machine) {
		m.update(m.object, event{kind: ended}) // The working watch has ended.
		m.fail(io.EOF)
	}
	// The refusal of a seen object counts after a while.
	forbid := func(m *machine) {
		m.update(m.object, event{kind: ended})
		m.fail(forbidden())
		time.Sleep(outageThreshold)
		m.fail(forbidden())
	}
	missing := (*machine).missing
	isMissing, isForbidden, isUnavailable := ErrNotFound.Error(), ErrForbidden.Error(), ErrUnavailable.Error()
	for name, steps := range map[string][]step{
		"nothing is known at first": {{func(*machine) {}, isUnavailable, false}, {unavailable, isUnavailable, true}},
		"a change notifies, the same again does not": {
			{found(one), "one", true}, {found(one), "one", false}, {found(two), "two", true},
		},
		"a missing object notifies once, and so does its return": {
			{missing, isMissing, true}, {missing, isMissing, false},
			{found(one), "one", true}, {missing, isMissing, true},
		},
		"content without a version is always new": {{found(Content{}), "", true}, {found(Content{}), "", true}},
		"an outage changes nothing": {
			{found(one), "one", true}, {unavailable, "one", false}, {found(one), "one", false},
			{unavailable, "one", false}, {found(two), "two", true},
		},
		"a missing object stays missing in an outage": {
			{missing, isMissing, true}, {unavailable, isMissing, false}, {missing, isMissing, false},
		},
		"an outage at first notifies once": {
			{unavailable, isUnavailable, true}, {unavailable, isUnavailable, false}, {found(one), "one", true},
		},
		"content does not outlive a refusal, nor comes back by an outage": {
			{found(one), "one", true}, {forbid, isForbidden, true}, {forbid, isForbidden, false},
			{unavailable, isUnavailable, true}, {found(one), "one", true},
		},
		"after a refusal nothing is known until an answer": {{forbid, isForbidden, true}, {missing, isMissing, true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine()
				for n, step := range steps {
					m.notified = 0
					step.do(m)
					content, err := m.Get(m.ref)
					got := string(content.Data["key"])
					if err != nil {
						var e *Error
						if !errors.As(err, &e) || e.Ref != m.ref {
							t.Fatalf("step %d: error %v, want an *Error of %v", n+1, err, m.ref)
						}
						got = e.Reason.Error()
						if content.Data != nil {
							t.Errorf("step %d: content next to an error", n+1)
						}
					}
					if got != step.want || m.notified != map[bool]int{true: 1}[step.notifies] {
						t.Errorf("step %d: %q, %d notifications; want %q, notified: %v",
							n+1, got, m.notified, step.want, step.notifies)
					}
				}
			})
		})
	}
}

// TestOutage makes requests fail for a while.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		outage := func(want time.Duration, says string) {
			t.Helper()
			since, err := m.Outage(m.ref)
			if (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
				t.Errorf("outage: %v, want %q", err, says)
			}
			if err != nil && time.Since(since) != want {
				t.Errorf("since %v, want %v", time.Since(since), want)
			}
		}
		m.found(Content{ResourceVersion: "1"})
		m.fail(io.EOF) // The end of a working watch is no failure.
		outage(0, "")
		m.fail(errors.New("first"))
		time.Sleep(outageThreshold - 1)
		outage(0, "") // The failure may be over in a moment.
		time.Sleep(time.Nanosecond)
		outage(outageThreshold, "first")
		m.fail(errors.New("second"))
		outage(outageThreshold, "second")
		if _, err := m.Get(m.ref); err != nil {
			t.Errorf("the content is lost in an outage: %v", err)
		}
		m.connected()
		outage(0, "")
		m.fail(io.EOF)
		m.fail(errors.New("third"))
		time.Sleep(time.Minute)
		outage(time.Minute, "third")
		m.Unsubscribe(m.ref, "v")
		outage(0, "")
		if m.notified != 1 {
			t.Errorf("%d notifications, want one, of the content", m.notified)
		}
	})
}

// TestRefusalOfASeenObject starts an API server, which refuses requests for a moment or for good.
func TestRefusalOfASeenObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		check := func(want error, notified int) {
			t.Helper()
			if _, err := m.Get(m.ref); !errors.Is(err, want) || m.notified != notified {
				t.Errorf("%v, %d notifications; want %v, %d", err, m.notified, want, notified)
			}
		}
		m.found(Content{ResourceVersion: "1"})
		m.update(m.object, event{kind: ended})
		m.mu.Lock()
		m.block()
		m.mu.Unlock()
		m.fail(forbidden())
		if m.blocked(t) {
			t.Error("Wait does not return with the seen content")
		}
		check(nil, 1)
		m.connected() // The refusal lasted for a moment.
		m.update(m.object, event{kind: ended})
		m.fail(io.EOF)
		time.Sleep(time.Hour)
		m.fail(forbidden()) // The time without an answer does not count as refusal.
		check(nil, 1)
		time.Sleep(outageThreshold - 1)
		m.fail(forbidden())
		check(nil, 1)
		time.Sleep(time.Nanosecond)
		m.fail(forbidden())
		check(ErrForbidden, 2)
		m.found(Content{ResourceVersion: "1"})
		check(nil, 3)

		m = newMachine()
		m.fail(forbidden()) // The object was never seen.
		check(ErrForbidden, 1)
	})
}

// TestBackoff checks the pauses without waiting for them.
func TestBackoff(t *testing.T) {
	m := newMachine()
	within := func(what string, got, least, most time.Duration) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s: %v, want %v to %v", what, got, least, most)
		}
	}
	failure := apierrors.NewInternalError(errors.New("of this object"))
	for n, most := range []time.Duration{100, 300, 900, 2700, 8100, 15000, 15000} {
		most *= time.Millisecond
		within(fmt.Sprintf("pause %d", n+1), m.fail(failure), most/2, most)
	}
	m.backoff = maxBackoff
	for n, most := range []time.Duration{3, 9, 15, 15, 45, 135, 300, 300} {
		if n == 4 {
			m.refused = time.Now().Add(-forbiddenSlowAfter)
		}
		most *= time.Second
		within(fmt.Sprintf("refused %d", n+1), m.fail(forbidden()), most/2, most)
	}
	within("a failure, after that", m.fail(failure), maxBackoff/2, maxBackoff)
	within("refused again", m.fail(forbidden()), 3*maxBackoff/2, 3*maxBackoff)
	m.connected()
	within("refused anew", m.fail(forbidden()), 3*recoveryMaxBackoff/2, 3*recoveryMaxBackoff)
	gone := apierrors.NewResourceExpired("too old")
	expire := func(resumed bool) time.Duration {
		m.backoff = maxBackoff
		failure := (&API{}).explain(m.ref, gone)
		return m.update(m.object, event{kind: ended, err: gone, failure: failure, resumed: resumed})
	}
	within("back, with another history", expire(true), 3*recoveryMaxBackoff/2, 3*recoveryMaxBackoff)
	within("a version that is too old as soon as it was read", expire(false), maxBackoff/2, maxBackoff)
	slow := func(seconds int) error { return apierrors.NewTooManyRequests("slow down", seconds) }
	m.backoff = 0
	within("a delay of 3 s", m.fail(slow(3)), 3050*time.Millisecond, 3100*time.Millisecond)
	m.backoff = 0
	within("a delay of a year", m.fail(slow(365*86400)), maxBackoff, maxBackoff+minBackoff)
	m.backoff = 0
	within("a negative delay", m.fail(slow(-5)), minBackoff/2, minBackoff)
	m.backoff, m.object.connected = maxBackoff, time.Now().Add(-backoffResetAfter/2)
	within("after a short watch", m.update(m.object, event{kind: ended}), maxBackoff/2, maxBackoff)
	m.object.connected = time.Now().Add(-backoffResetAfter)
	within("after a longer watch", m.update(m.object, event{kind: ended}), minBackoff/2, minBackoff)
}

// TestLogOfChanges checks that each change of state makes one line, regardless of the number of failed requests. It
// captures klog, so it is not parallel.
func TestLogOfChanges(t *testing.T) {
	log := testkit.LogOf(t, 0)
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		ended := func() { m.update(m.object, event{kind: ended}) }
		unavailable := apierrors.NewServiceUnavailable("later")
		m.found(Content{ResourceVersion: "1"})
		ended()
		m.fail(io.EOF)
		time.Sleep(outageThreshold) // The line comes only after this time.
		for _, err := range []error{unavailable, unavailable, io.EOF, forbidden()} {
			m.fail(err)
		}
		time.Sleep(outageThreshold) // The line comes only after this time.
		m.fail(forbidden())
		m.fail(forbidden())
		m.found(Content{ResourceVersion: "1"})
		m.found(Content{ResourceVersion: "2"})
		m.connected()
		m.missing()
	})
	var lines []string
	for line := range strings.Lines(log.Text()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), "] ")
		lines = append(lines, line)
	}
	want := []string{
		`"Object can't be read" object="Secret \"n/a\"" reason="can't be read now" detail="later"`,
		`"Object can't be read" object="Secret \"n/a\"" reason="forbidden" detail="secrets \"a\" is forbidden: ` +
			`no relationship found; let the driver read it:`,
		`"Object can be read again" object="Secret \"n/a\""`,
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

// TestRetry adds subscribers to an object, and requests a retry.
func TestRetry(t *testing.T) {
	for _, test := range []struct {
		name  string
		state func(*machine)
		// retries means that the last request has failed. blocks means that there is no content in the meantime.
		retries, blocks bool
	}{
		{"nothing is known", func(*machine) {}, false, true},
		{"found", func(m *machine) { m.found(Content{ResourceVersion: "1"}) }, false, false},
		{"missing", (*machine).missing, false, false},
		{"found, and away", func(m *machine) {
			m.found(Content{ResourceVersion: "1"})
			m.update(m.object, event{kind: ended})
			m.fail(io.EOF)
		}, true, false},
		{"unavailable", func(m *machine) { m.fail(io.EOF) }, true, true},
		{"refused", func(m *machine) { m.fail(forbidden()) }, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine()
				test.state(m)
				blocked := m.blocked(t)
				check := func(what string, retries, blocks bool) {
					t.Helper()
					if got := len(m.retry) == 1; got != retries || m.blocked(t) != blocks {
						t.Errorf("%s: retry: %v, blocked: %v; want %v, %v", what, got, m.blocked(t), retries, blocks)
					}
				}
				time.Sleep(failureMemory - 1)
				m.Subscribe(m.ref, "two", false, func() {})
				check("a new subscriber, a moment after a failure", false, blocked)
				time.Sleep(time.Nanosecond)
				m.Subscribe(m.ref, "v", false, func() {})
				check("an old subscriber", false, blocked)
				m.Subscribe(m.ref, "three", false, func() {})
				check("a new subscriber, later", test.retries, test.blocks)
				pending := m.pending
				m.Subscribe(m.ref, "four", false, func() {})
				if pending != m.pending {
					t.Error("two new subscribers wait for different results")
				}
				if test.retries {
					<-m.retry
				}
				m.fail(forbidden())
				m.fail(forbidden())
				check("after the answer", false, false)
				m.Retry(m.ref)
				_, err := m.Get(m.ref)
				check("asked for", true, errors.Is(err, ErrForbidden))
				m.Retry(Ref{}) // an object without subscribers
			})
		})
	}
}

// TestRefusalIsRemembered publishes a volume of a refused object again and again, as kubelet does.
func TestRefusalIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		pause := m.fail(forbidden())
		if pause < failureMemory {
			t.Errorf("the next request is %v after a refusal, want at least %v", pause, failureMemory)
		}
		m.Unsubscribe(m.ref, "v")
		if m.Watched() != 0 {
			t.Errorf("%d watched, want none without a subscriber", m.Watched())
		}
		time.Sleep(failureMemory - 1)
		m.Subscribe(m.ref, "again", false, func() {})
		if _, err := m.Get(m.ref); !errors.Is(err, ErrForbidden) || m.started != 1 || len(m.retry) != 0 || m.blocked(t) {
			t.Errorf("the next attempt: error %v, %d started, %d retries; want the remembered refusal",
				err, m.started, len(m.retry))
		}
		time.Sleep(failureMemory)
		if m.Watched() != 1 || m.ended != 0 {
			t.Errorf("%d watched, %d ended; want the new subscriber's watch to stay", m.Watched(), m.ended)
		}
		m.fail(forbidden())
		m.Unsubscribe(m.ref, "again")
		time.Sleep(failureMemory)
		synctest.Wait()
		if m.mu.Lock(); m.objects[m.ref] != nil || m.ended != 1 {
			t.Errorf("%d ended, want the object forgotten after %v", m.ended, failureMemory)
		}
		m.mu.Unlock()

		m.Subscribe(m.ref, "v", false, func() {})
		m.object = m.objects[m.ref]
		m.fail(io.EOF)
		m.Unsubscribe(m.ref, "v")
		if m.objects[m.ref] != nil {
			t.Error("an outage is remembered")
		}
	})
}

// TestSubscribers subscribes to two objects of a registry without a real source.
func TestSubscribers(t *testing.T) {
	m := newMachine()
	other := Ref{Kind: attributes.ConfigMap, Namespace: "n", Name: "a"}
	notified := map[string]int{}
	subscribe := func(ref Ref, subscriber string) {
		m.Subscribe(ref, subscriber, false, func() { notified[subscriber]++ })
	}

	subscribe(m.ref, "one")
	subscribe(m.ref, "one")
	m.Unsubscribe(m.ref, "v")
	subscribe(m.ref, "two")
	subscribe(other, "one")
	if m.started != 2 || m.Watched() != 2 || len(notified) != 0 {
		t.Fatalf("%d started, %d watched, notified %v; want 2, 2 and nobody", m.started, m.Watched(), notified)
	}
	if !m.blocked(t) {
		t.Error("not blocked though nothing is known")
	}
	m.found(Content{ResourceVersion: "1"})
	m.Wait(t.Context(), m.ref)
	subscribe(m.ref, "three")
	if notified["one"] != 1 || notified["two"] != 1 || notified["three"] != 1 {
		t.Errorf("notified %v, want each subscriber once", notified)
	}
	if _, err := m.Get(other); !errors.Is(err, ErrUnavailable) {
		t.Errorf("of what is not known yet: error %v, want %v", err, ErrUnavailable)
	}

	// Two subscriptions of the same subscriber are one.
	m.Unsubscribe(m.ref, "one")
	m.Unsubscribe(m.ref, "one")
	m.Unsubscribe(m.ref, "two")
	m.missing()
	if m.ended != 0 || notified["one"] != 1 || notified["two"] != 1 || notified["three"] != 2 {
		t.Errorf("%d ended, notified %v; want none, and only the last subscriber", m.ended, notified)
	}
	m.Unsubscribe(m.ref, "three")
	m.Unsubscribe(m.ref, "three")
	if m.ended != 1 || m.Watched() != 1 {
		t.Errorf("%d ended, %d watched, want 1 and 1", m.ended, m.Watched())
	}
	if _, err := m.Get(m.ref); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the last subscriber: error %v, want %v", err, ErrUnavailable)
	}
	m.Wait(t.Context(), m.ref) // Wait returns, because the object has no subscriber.
	subscribe(m.ref, "four")
	m.found(Content{ResourceVersion: "2"}) // This is a late event of the watch that has ended.
	if m.started != 3 || notified["four"] != 0 {
		t.Errorf("%d started, notified %v; want a new beginning", m.started, notified)
	}
}

// TestNewestReplacesTheWatch requires the newest version of an object whose list was of any version.
func TestNewestReplacesTheWatch(t *testing.T) {
	m := newMachine()
	old := Content{UID: "u", ResourceVersion: "1"}
	m.found(old)
	before := m.object
	notified := 0
	m.Subscribe(m.ref, "recovered", true, func() { notified++ })
	if m.started != 2 || m.ended != 1 || m.notified != 1 || notified != 0 {
		t.Errorf("%d started, %d ended, %d and %d notifications; want a new watch, and nobody notified yet",
			m.started, m.ended, m.notified, notified)
	}
	m.update(before, event{kind: found, content: old}) // This is a late event of the old watch.
	if _, err := m.Get(m.ref); !errors.Is(err, ErrUnavailable) || m.objects[m.ref].pending == nil {
		t.Errorf("error %v; want no result before the new watch has one", err)
	}
	m.object = m.objects[m.ref]
	m.found(Content{UID: "u", ResourceVersion: "2"})
	if c, err := m.Get(m.ref); err != nil || c.ResourceVersion != "2" || m.notified != 2 || notified != 1 {
		t.Errorf("version %q, error %v, %d and %d notifications; want both subscribers notified of version 2",
			c.ResourceVersion, err, m.notified, notified)
	}
	m.Subscribe(m.ref, "adopted", true, func() {})
	m.Subscribe(m.ref, "new", false, func() {})
	if m.started != 2 {
		t.Errorf("%d started, want no other watch: the list was consistent", m.started)
	}
}

// TestNewestKeepsWaiters replaces the watch while a caller waits for its first result.
func TestNewestKeepsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		returned := false
		go func() {
			m.Wait(t.Context(), m.ref)
			returned = true
		}()
		synctest.Wait()
		m.Subscribe(m.ref, "recovered", true, func() {})
		synctest.Wait()
		if returned {
			t.Error("Wait returned without a result")
		}
		m.object = m.objects[m.ref]
		m.found(Content{ResourceVersion: "1"})
		synctest.Wait()
		if !returned {
			t.Error("Wait does not return with the result of the new watch")
		}
	})
}

// TestImmutable reads an object once, and again for a new subscriber or after a while.
func TestImmutable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		notified := map[string]int{}
		subscribe := func(subscriber string) { m.Subscribe(m.ref, subscriber, false, func() { notified[subscriber]++ }) }
		one := Content{UID: "u", ResourceVersion: "1", Immutable: true}
		m.complete(one)
		subscribe("v")
		if _, err := m.Get(m.ref); err != nil || m.started != 1 || m.blocked(t) {
			t.Fatalf("%d started, error %v; want the object read once", m.started, err)
		}

		subscribe("two")
		if m.started != 2 || !m.blocked(t) || notified["two"] != 1 {
			t.Errorf("a new subscriber: %d started, notified %v; want another read, Wait blocked, and one notification",
				m.started, notified)
		}
		subscribe("three")
		if m.started != 2 {
			t.Errorf("%d started, want one read for all subscribers that come meanwhile", m.started)
		}
		m.complete(one)
		if m.blocked(t) || notified["v"] != 1 || notified["two"] != 1 {
			t.Errorf("the same again: notified %v, blocked: %v; want nobody notified", notified, m.blocked(t))
		}

		time.Sleep(m.recheck/2 - 1)
		synctest.Wait()
		if m.starts() != 2 {
			t.Error("read again too early")
		}
		time.Sleep(m.recheck/2 + 1)
		synctest.Wait()
		content, err := m.Get(m.ref)
		if m.started != 3 || err != nil || !content.SameVersion(one) {
			t.Errorf("%d started, error %v; want one more read, and the old content meanwhile", m.started, err)
		}
		m.fail(io.EOF)
		if content, err := m.Get(m.ref); err != nil || !content.SameVersion(one) || m.blocked(t) {
			t.Errorf("the API server is away: %v; want the old content, and nobody blocked", err)
		}
		m.complete(Content{UID: "v", ResourceVersion: "2", Immutable: true})
		if notified["v"] != 2 || notified["two"] != 2 || notified["three"] != 2 {
			t.Errorf("created again: notified %v, want each once more", notified)
		}
		for _, subscriber := range []string{"v", "two", "three"} {
			m.Unsubscribe(m.ref, subscriber)
		}
		time.Sleep(2 * m.recheck)
		synctest.Wait()
		if m.started != 3 {
			t.Error("read again without a subscriber")
		}
	})
}

// TestConcurrently runs all methods in parallel for the race detector.
func TestConcurrently(t *testing.T) {
	r := newRegistry(time.Millisecond)
	ref := Ref{Kind: attributes.Secret, Namespace: "n", Name: "a"}
	var wait sync.WaitGroup
	r.start = func(o *object) func() {
		wait.Go(func() {
			immutable := Content{ResourceVersion: "1", Immutable: true}
			for _, e := range []event{
				{kind: found, content: Content{ResourceVersion: "1"}}, {kind: ended},
				{kind: ended, err: io.EOF, failure: &Error{Ref: ref, Reason: ErrUnavailable}},
				{kind: missing}, {kind: found, content: immutable}, {kind: complete},
			} {
				r.update(o, e)
			}
		})
		return func() {}
	}
	var subscribers sync.WaitGroup
	for _, subscriber := range []string{"one", "two", "three"} {
		subscribers.Go(func() {
			for range 200 {
				r.Subscribe(ref, subscriber, false, func() {})
				r.Wait(t.Context(), ref)
				_, _ = r.Get(ref)
				_, _ = r.Outage(ref)
				r.Watched()
				r.Unsubscribe(ref, subscriber)
			}
		})
	}
	subscribers.Wait()
	if r.Watched() != 0 {
		t.Errorf("%d watched, want none", r.Watched())
	}
	wait.Wait()
}

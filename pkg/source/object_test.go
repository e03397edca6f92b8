// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestStates tells an object one thing after the other, and looks at what Get returns and whether its holder is told.
func TestStates(t *testing.T) {
	one := Content{UID: "u", ResourceVersion: "1", Data: map[string][]byte{"key": []byte("one")}}
	two := Content{UID: "u", ResourceVersion: "2", Data: map[string][]byte{"key": []byte("two")}}
	type step struct {
		do   func(*object)
		want string // the content, or the reason of the error
		told bool
	}
	found := func(c Content) func(*object) { return func(o *object) { o.found(c) } }
	failed := func(reason error) func(*object) {
		return func(o *object) { o.failed(&Error{Ref: o.ref, Reason: reason, Detail: "detail"}) }
	}
	missing := (*object).missing
	notFound, forbidden, unavailable := ErrNotFound.Error(), ErrForbidden.Error(), ErrUnavailable.Error()
	for name, steps := range map[string][]step{
		"nothing is known at first":                     {{func(*object) {}, unavailable, false}, {failed(ErrUnavailable), unavailable, true}},
		"a change is told, the same again is not":       {{found(one), "one", true}, {found(one), "one", false}, {found(two), "two", true}},
		"a missing object is told once, and its return": {{missing, notFound, true}, {missing, notFound, false}, {found(one), "one", true}, {missing, notFound, true}},
		"content without a version is always new":       {{found(Content{}), "", true}, {found(Content{}), "", true}},
		"an outage changes nothing": {
			{found(one), "one", true}, {failed(ErrUnavailable), "one", false}, {found(one), "one", false},
			{failed(ErrUnavailable), "one", false}, {found(two), "two", true},
		},
		"a missing object stays missing in an outage": {{missing, notFound, true}, {failed(ErrUnavailable), notFound, false}, {missing, notFound, false}},
		"an outage at first is told once":             {{failed(ErrUnavailable), unavailable, true}, {failed(ErrUnavailable), unavailable, false}, {found(one), "one", true}},
		"content does not outlive a refusal, nor comes back by an outage": {
			{found(one), "one", true}, {failed(ErrForbidden), forbidden, true}, {failed(ErrForbidden), forbidden, false},
			{failed(ErrUnavailable), unavailable, true}, {found(one), "one", true},
		},
		"who was refused knows nothing until an answer": {{failed(ErrForbidden), forbidden, true}, {missing, notFound, true}},
	} {
		t.Run(name, func(t *testing.T) {
			told := 0
			o := newObject(Ref{Kind: Secret, Namespace: "n", Name: "a"})
			o.hold("v", func() { told++ })
			for n, step := range steps {
				told = 0
				step.do(o)
				content, err := o.get()
				got := string(content.Data["key"])
				if err != nil {
					var e *Error
					if !errors.As(err, &e) || e.Ref != o.ref {
						t.Fatalf("step %d: error %v, want an *Error of %v", n+1, err, o.ref)
					}
					got = e.Reason.Error()
					if content.Data != nil {
						t.Errorf("step %d: content next to an error", n+1)
					}
				}
				if got != step.want || told != map[bool]int{true: 1}[step.told] {
					t.Errorf("step %d: %q, told %d times; want %q, told: %v", n+1, got, told, step.want, step.told)
				}
			}
		})
	}
}

// TestOutage loses the word of an object for a while. Its time is synctest's.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(time.Hour)
		r.keep = func(*object) func() { return func() {} }
		ref := Ref{Kind: Secret, Namespace: "n", Name: "a"}
		told := 0
		r.Watch(ref, "v", func() { told++ })
		o := r.object(ref)
		away := func(want time.Duration, says string) {
			t.Helper()
			since, err := r.Away(ref)
			if (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
				t.Errorf("away: %v, want %q", err, says)
			}
			if err != nil && time.Since(since) != want {
				t.Errorf("since %v, want %v", time.Since(since), want)
			}
		}
		failed := func(detail string) { o.failed(&Error{Ref: ref, Reason: ErrUnavailable, Detail: detail}) }
		o.found(Content{ResourceVersion: "1"})
		away(0, "")
		failed("first")
		time.Sleep(tolerated - 1)
		away(0, "") // it may still be back in a moment
		time.Sleep(1)
		away(tolerated, "first")
		failed("second")
		away(tolerated, "second")
		if _, err := r.Get(ref); err != nil {
			t.Errorf("what was seen is not there in an outage: %v", err)
		}
		o.reached()
		away(0, "")
		failed("third")
		time.Sleep(time.Minute)
		away(time.Minute, "third")
		r.Unwatch(ref, "v")
		away(0, "")
		if told != 1 {
			t.Errorf("told %d times, want once: of the content", told)
		}
	})
}

// TestAsk has somebody new come for an object that nobody may read.
func TestAsk(t *testing.T) {
	r := newRegistry(time.Hour)
	r.keep = func(*object) func() { return func() {} }
	ref := Ref{Kind: Secret, Namespace: "n", Name: "a"}
	asked := func() bool {
		select {
		case <-r.object(ref).asked:
			return true
		default:
			return false
		}
	}
	known := func() bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		r.Wait(ended, ref)
		select {
		case <-r.object(ref).known:
			return true
		default:
			return false
		}
	}
	for _, test := range []struct {
		name    string
		verdict func(*object)
		asks    bool
	}{
		{"nothing is known", func(*object) {}, false},
		{"found", func(o *object) { o.found(Content{ResourceVersion: "1"}) }, false},
		{"missing", (*object).missing, false},
		{"unavailable", func(o *object) { o.decide(verdict{err: &Error{Reason: ErrUnavailable}}) }, false},
		{"refused", func(o *object) { o.failed(&Error{Reason: ErrForbidden}) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, holder := range []string{"one", "two", "three"} {
				defer r.Unwatch(ref, holder)
			}
			r.Watch(ref, "one", func() {})
			o := r.object(ref)
			test.verdict(o)
			was := known()
			r.Watch(ref, "one", func() {})
			if asked() || known() != was {
				t.Error("asked for somebody who was there already")
			}
			r.Watch(ref, "two", func() {})
			waiting := o.known
			r.Watch(ref, "three", func() {})
			if asked() != test.asks || known() != (was && !test.asks) {
				t.Errorf("asked: %v, known: %v", !test.asks, known())
			}
			o.failed(&Error{Reason: ErrForbidden})
			<-waiting // the answer is one to all
		})
	}
}

// TestRegistry watches a source that says nothing by itself.
func TestRegistry(t *testing.T) {
	r := newRegistry(time.Hour)
	ref, other := Ref{Kind: Secret, Namespace: "n", Name: "a"}, Ref{Kind: ConfigMap, Namespace: "n", Name: "a"}
	var started []*object
	stopped := 0
	r.keep = func(o *object) func() {
		started = append(started, o)
		return func() { stopped++ }
	}
	told := map[string]int{}
	watch := func(ref Ref, holder string) { r.Watch(ref, holder, func() { told[holder]++ }) }

	watch(ref, "one")
	watch(ref, "one")
	watch(ref, "two")
	watch(other, "one")
	if len(started) != 2 || r.Watched() != 2 || len(told) != 0 {
		t.Fatalf("%d started, %d watched, told %v; want 2, 2 and nobody", len(started), r.Watched(), told)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r.Wait(ended, ref) // returns, though nothing is known
	started[0].found(Content{ResourceVersion: "1"})
	r.Wait(t.Context(), ref)
	watch(ref, "three")
	if told["one"] != 1 || told["two"] != 1 || told["three"] != 1 {
		t.Errorf("told %v, want each holder once", told)
	}
	if _, err := r.Get(other); !errors.Is(err, ErrUnavailable) {
		t.Errorf("of what is not known yet: error %v, want %v", err, ErrUnavailable)
	}

	// To hold twice is to hold once.
	r.Unwatch(ref, "one")
	r.Unwatch(ref, "one")
	r.Unwatch(ref, "two")
	started[0].missing()
	if stopped != 0 || told["one"] != 1 || told["two"] != 1 || told["three"] != 2 {
		t.Errorf("stopped %d times, told %v; want not stopped, and the last holder told alone", stopped, told)
	}
	r.Unwatch(ref, "three")
	r.Unwatch(ref, "three")
	if stopped != 1 || r.Watched() != 1 {
		t.Errorf("stopped %d times, %d watched, want 1 and 1", stopped, r.Watched())
	}
	if _, err := r.Get(ref); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the last holder let go: error %v, want %v", err, ErrUnavailable)
	}
	r.Wait(t.Context(), ref) // of what nobody watches: returns
	watch(ref, "four")
	if len(started) != 3 || told["four"] != 0 {
		t.Errorf("%d started, told %v; want to begin anew", len(started), told)
	}
}

// TestResting has an object be read once and for all, and somebody want to know again.
func TestResting(t *testing.T) {
	const recheck = time.Hour
	r := newRegistry(recheck)
	ref := Ref{Kind: Secret, Namespace: "n", Name: "a"}
	var started []*object
	r.keep = func(o *object) func() {
		started = append(started, o)
		return func() {}
	}
	told := map[string]int{}
	watch := func(holder string) { r.Watch(ref, holder, func() { told[holder]++ }) }
	watch("one")
	o := started[0]
	settle := func(c Content) {
		o.found(c)
		o.rest()
	}
	waits := func() bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		select {
		case <-o.known:
			return false
		default:
			r.Wait(ended, ref)
			return true
		}
	}
	one := Content{UID: "u", ResourceVersion: "1", Immutable: true}
	settle(one)
	watch("one")
	if _, err := r.Get(ref); err != nil || len(started) != 1 || waits() {
		t.Fatalf("started %d times, error %v; want the object to rest", len(started), err)
	}

	watch("two")
	if len(started) != 2 || !waits() || told["two"] != 1 {
		t.Errorf("a new holder: started %d times, told %v; want another reading, to wait for it, and what is there told at once", len(started), told)
	}
	watch("three")
	if len(started) != 2 {
		t.Errorf("started %d times, want one reading for all that come meanwhile", len(started))
	}
	settle(one)
	if waits() || told["one"] != 2 || told["two"] != 1 { // "one" watched twice
		t.Errorf("the same again: told %v, waits: %v; want nobody told", told, waits())
	}

	o.resting = time.Now().Add(-recheck + time.Minute)
	r.Get(ref)
	if len(started) != 2 {
		t.Error("read anew too early")
	}
	o.resting = time.Now().Add(-recheck)
	content, err := r.Get(ref)
	r.Get(ref)
	if len(started) != 3 || err != nil || !content.SameVersion(one) {
		t.Errorf("started %d times, error %v; want one more reading, and the old content meanwhile", len(started), err)
	}
	o.failed(&Error{Ref: ref, Reason: ErrUnavailable})
	if content, err := r.Get(ref); err != nil || !content.SameVersion(one) || waits() {
		t.Errorf("the API server is away: %v; want the old content, and nobody to wait", err)
	}
	settle(Content{UID: "v", ResourceVersion: "2", Immutable: true})
	if told["one"] != 3 || told["two"] != 2 || told["three"] != 2 {
		t.Errorf("made anew: told %v, want each once more", told)
	}
}

// TestConcurrently is for the race detector.
func TestConcurrently(t *testing.T) {
	r := newRegistry(0)
	ref := Ref{Kind: Secret, Namespace: "n", Name: "a"}
	var wait sync.WaitGroup
	r.keep = func(o *object) func() {
		wait.Go(func() {
			o.found(Content{ResourceVersion: "1"})
			o.failed(&Error{Ref: ref, Reason: ErrUnavailable})
			o.missing()
			o.found(Content{ResourceVersion: "1", Immutable: true})
			o.rest()
		})
		return func() {}
	}
	for _, holder := range []string{"one", "two", "three"} {
		wait.Go(func() {
			for range 200 {
				r.Watch(ref, holder, func() {})
				r.Wait(t.Context(), ref)
				_, _ = r.Get(ref)
				r.Watched()
				r.Unwatch(ref, holder)
			}
		})
	}
	wait.Wait()
	if r.Watched() != 0 {
		t.Errorf("%d watched, want none", r.Watched())
	}
}

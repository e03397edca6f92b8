// SPDX-License-Identifier: Apache-2.0

package source

import (
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
)

// The time limits of the state machine. A pause takes between half of the backoff and all of it.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 15 * time.Second
	// backoffResetAfter is the duration of a working watch after which the backoff starts again at minBackoff.
	backoffResetAfter = 5 * time.Second
	// forbiddenMaxBackoff replaces maxBackoff after the API server has refused the object for forbiddenSlowAfter
	// (docs/decisions/0007-refused.md).
	forbiddenMaxBackoff = 5 * time.Minute
	forbiddenSlowAfter  = time.Minute
	// recoveryMaxBackoff caps the backoff after the API server comes back and first rejects our resource version or
	// credentials.
	recoveryMaxBackoff = time.Second
	// failureMemory is the time for which a new subscriber gets the last failure without another request. It is the
	// shortest pause after the refusal of an object that was never read.
	failureMemory = 3 * recoveryMaxBackoff / 2
	// outageThreshold is the time after which failing requests for an object are an outage. A replaced API server and a
	// broken connection are back within seconds.
	outageThreshold = 10 * time.Second
)

// object is the state of one object. The registry's lock guards all fields except ref, consistent and retry.
type object struct {
	ref Ref
	// consistent means that the first list is consistent. Otherwise its version can be older than a version that an
	// earlier watch has seen.
	consistent bool
	// subscribers has, by subscriber, the function to call after each change of the result.
	subscribers map[string]func()
	// stop ends the goroutine or the timer that keeps the object current.
	stop func()
	// stopped means that the object is immutable and has been read. A timer restarts its watch.
	stopped bool
	// retry receives a value when the current pause must end.
	retry chan struct{}

	// result is the result of Get; nil before the first one.
	result *result
	// pending is closed with the next result. It is nil if result is recent enough for Wait.
	pending chan struct{}
	// seen means that the API server has said whether the object exists. Later reads must not return an older version.
	seen bool

	// failed is the time of the last failure.
	failed time.Time
	// connected is the time when the current watch began to work; zero between watches.
	connected time.Time
	// refused is the time of the first refusal; zero while the API server permits reading the object.
	refused time.Time
	// outage is the last failure, and outageSince the time of the first one. outage is nil while requests succeed.
	outage      *Error
	outageSince time.Time
	// logged is the last logged failure; nil while requests succeed.
	logged *Error
	// backoff is the upper bound of the last pause.
	backoff time.Duration
}

// result is the result of Get: the content or an error.
type result struct {
	content Content
	err     *Error
}

// same reports whether the results are equal for subscribers.
func (r *result) same(other *result) bool {
	if r.err != nil && other.err != nil {
		return r.err.Reason == other.err.Reason
	}
	return r.err == nil && other.err == nil && r.content.SameVersion(other.content)
}

// conclusive reports whether the result shows if the object exists.
func (r *result) conclusive() bool { return r != nil && (r.err == nil || r.err.Reason == ErrNotFound) }

// forbidden reports whether the API server refuses the object.
func (r *result) forbidden() bool { return r != nil && r.err != nil && r.err.Reason == ErrForbidden }

// event is something that the source has learned about an object.
type event struct {
	kind eventKind
	// content is the content of a found object.
	content Content
	// err is the error that ended a watch or a request, and failure describes it for users. Both are nil if the API server
	// ended a working watch. resumed means that the watch continued from the version of an earlier one.
	err     error
	failure *Error
	resumed bool
}

type eventKind int

const (
	found     eventKind = iota // the object exists
	missing                    // the object does not exist
	connected                  // a watch works, and has brought nothing new yet
	complete                   // the object is immutable and has been read, so its watch has ended
	ended                      // a watch ended, or a request failed
)

// update applies an event to an object, notifies the subscribers if the result changed, and returns the pause before
// the next request.
func (r *registry) update(o *object, e event) (pause time.Duration) {
	before, after, pause := r.applyLocked(o, e)
	switch {
	case after == nil && before != nil:
		klog.InfoS("Object can be read again", "object", o.ref.String())
	case after != nil && (before == nil || before.Reason != after.Reason):
		klog.InfoS("Object can't be read", "object", o.ref.String(), "reason", after.Reason, "detail", after.Detail)
	}
	return pause
}

// applyLocked is update without logging. It returns the failures to log, before and after the event. It is a function
// of its own so that a panic releases the lock.
func (r *registry) applyLocked(o *object, e event) (before, after *Error, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = o.logged
	pause = r.apply(o, e)
	return before, o.logged, pause
}

// apply changes the state of an object, for a caller that holds the lock.
func (r *registry) apply(o *object, e event) (pause time.Duration) {
	if r.objects[o.ref] != o {
		return 0 // The object has no subscriber any more.
	}
	switch e.kind {
	case found:
		o.connect()
		o.seen = true
		o.setResult(&result{content: e.content})
	case missing:
		o.connect()
		o.seen = true
		o.setResult(&result{err: &Error{Ref: o.ref, Reason: ErrNotFound}})
	case connected:
		o.connect()
	case complete:
		r.recheckLater(o)
	case ended:
		return r.end(o, e)
	}
	return 0
}

// connect records that the API server answers correctly.
func (o *object) connect() {
	if o.connected.IsZero() {
		o.connected = time.Now()
	}
	o.refused, o.outage, o.logged = time.Time{}, nil, nil
}

// end records the end of a watch or of a request, and returns the pause.
func (r *registry) end(o *object, e event) (pause time.Duration) {
	now := time.Now()
	worked := !o.connected.IsZero()
	if worked && now.Sub(o.connected) >= backoffResetAfter {
		o.backoff = 0
	}
	o.connected = time.Time{}
	longest := maxBackoff
	if e.failure != nil && e.failure.Reason == ErrForbidden {
		if o.refused.IsZero() {
			o.refused, o.backoff = now, min(o.backoff, recoveryMaxBackoff)
			if !o.seen {
				o.backoff = recoveryMaxBackoff // For a volume that waits for the object, Retry ends the pause.
			}
		}
		if now.Sub(o.refused) >= forbiddenSlowAfter {
			longest = forbiddenMaxBackoff
		}
	}
	expired := e.resumed && isExpired(e.err)
	if expired {
		o.backoff = min(o.backoff, recoveryMaxBackoff)
	}
	// The end of a working watch, or of its version, says nothing about the object. The next request does.
	if e.failure != nil && !worked && !expired {
		o.fail(e.failure, now)
	}
	o.backoff = min(max(minBackoff, 3*o.backoff), longest)
	return jittered(o.backoff) + requestedDelay(e.err)
}

// fail records that a request for the object failed. The last result stays during an outage. A refusal replaces it,
// because nobody may get a copy of an object without the right to read the object. But an API server that has just
// started does not know the rights yet, so the refusal of a seen object counts only after outageThreshold.
func (o *object) fail(failure *Error, now time.Time) {
	if o.outage == nil {
		o.outageSince = now
	}
	o.outage, o.failed = failure, now
	since, forbidden := o.outageSince, failure.Reason == ErrForbidden
	if forbidden {
		since = o.refused
	}
	brief := o.seen && now.Sub(since) < outageThreshold
	if !brief {
		o.logged = failure
	}
	if o.result.conclusive() && (brief || !forbidden) {
		o.release()
		return
	}
	o.setResult(&result{err: failure})
}

// setResult replaces the result, and notifies the subscribers of a change.
func (o *object) setResult(next *result) {
	changed := o.result == nil || !next.same(o.result)
	o.result = next
	o.release()
	if !changed {
		return
	}
	for _, notify := range o.subscribers {
		notify()
	}
}

// block makes Wait block until the next result.
func (o *object) block() {
	if o.pending == nil {
		o.pending = make(chan struct{})
	}
}

// release ends all calls of Wait.
func (o *object) release() {
	if o.pending != nil {
		close(o.pending)
		o.pending = nil
	}
}

// retryNow triggers an immediate retry if the last request failed. Without a conclusive result, current waiters block
// until the retry completes.
func (o *object) retryNow() {
	if o.outage == nil {
		return
	}
	if !o.result.conclusive() {
		o.block()
	}
	select {
	case o.retry <- struct{}{}:
	default: // A retry is already due.
	}
}

// restart keeps the object current again. The caller holds the lock.
func (r *registry) restart(o *object) {
	if o.stop != nil {
		o.stop()
	}
	o.block()
	o.stopped, o.backoff = false, 0
	o.stop = r.start(o)
}

// recheckLater reads an immutable object again after a while, because it can be deleted and created again.
func (r *registry) recheckLater(o *object) {
	o.stopped, o.connected = true, time.Time{}
	timer := time.AfterFunc(jittered(r.recheck), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if o.stopped && r.objects[o.ref] == o {
			r.restart(o)
		}
	})
	o.stop = func() { timer.Stop() }
}

// requestedDelay returns the pause that the API server requests together with a failure, within bounds.
func requestedDelay(err error) time.Duration {
	seconds, _ := apierrors.SuggestsClientDelay(err)
	return min(time.Duration(max(seconds, 0))*time.Second, maxBackoff)
}

// jittered returns a random duration between d/2 and d, so that watches that fail together do not retry together.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

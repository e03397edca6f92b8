// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"sync"
	"time"
)

// registry holds the objects that have subscribers. It is safe for concurrent use.
type registry struct {
	// start begins to keep an object current. It returns the function that stops this. The caller holds the lock.
	start func(*object) (stop func())
	// recheck is the longest time after which an immutable object is read again.
	recheck time.Duration

	// mu guards the map and the state of its objects.
	mu      sync.Mutex
	objects map[Ref]*object
}

func newRegistry(recheck time.Duration) registry {
	return registry{recheck: recheck, objects: map[Ref]*object{}}
}

// Subscribe keeps ref current for subscriber until Unsubscribe. It calls changed after each change of the result of
// Get, also after the first result, and immediately if there is a result already. changed must neither block nor call
// the source. A second call for the same subscriber has no other effect.
//
// newest means that the subscriber has shown content of an earlier watch, so the first list of the watch must be
// consistent. An object whose first list was of any version gets a new watch, and it has no result until the new watch
// has one.
func (r *registry) Subscribe(ref Ref, subscriber string, newest bool, changed func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil || newest && !o.consistent {
		o = r.replace(o, ref, newest)
	}
	_, known := o.subscribers[subscriber]
	o.subscribers[subscriber] = changed
	if o.result != nil {
		changed()
	}
	switch {
	case known:
	case o.stopped:
		r.restart(o) // The immutable object may have been deleted and created again.
	case time.Since(o.failed) >= failureMemory:
		o.retryNow() // Otherwise the next attempt may be minutes away.
	}
}

// Retry reads an object again at once if the last request for it failed. If Get has no content, Wait blocks until there
// is an answer.
func (r *registry) Retry(ref Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.objects[ref]; o != nil {
		o.retryNow()
	}
}

// replace begins to keep an object current. If old is not nil, the object takes its place. A late event of the watch of
// old changes nothing, because old is not in the map any more. The caller holds the lock.
func (r *registry) replace(old *object, ref Ref, consistent bool) *object {
	o := &object{
		ref: ref, consistent: consistent, subscribers: map[string]func(){}, retry: make(chan struct{}, 1),
	}
	if old != nil {
		old.stop()
		o.subscribers, o.pending = old.subscribers, old.pending
	}
	r.objects[ref] = o
	r.restart(o)
	return o
}

// Unsubscribe undoes Subscribe. After the last subscriber, the watch ends and the content is dropped. A refusal is kept
// for failureMemory, so that kubelet's next attempt to publish a volume of many refused objects causes few requests.
func (r *registry) Unsubscribe(ref Ref, subscriber string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil {
		return
	}
	delete(o.subscribers, subscriber)
	if len(o.subscribers) > 0 {
		return
	}
	if remembered := failureMemory - time.Since(o.failed); o.result.forbidden() && remembered > 0 {
		time.AfterFunc(remembered, func() { r.Unsubscribe(ref, "") })
		return
	}
	delete(r.objects, ref)
	o.stop()
}

// Wait blocks until there is a result for an object that has subscribers, or ctx ends. If a new subscriber caused
// another read of an immutable object, or of one that could not be read, Wait blocks until that read has a result.
func (r *registry) Wait(ctx context.Context, ref Ref) {
	var pending chan struct{}
	r.mu.Lock()
	if o := r.objects[ref]; o != nil {
		pending = o.pending
	}
	r.mu.Unlock()
	if pending == nil {
		return
	}
	select {
	case <-pending:
	case <-ctx.Done():
	}
}

// Get returns the last known content of an object that has subscribers. It does not wait. The error is an *Error.
//
// During an outage the content remains readable, even for a new subscriber: a pod that starts while the API server
// can't be reached gets the last known content if the node watches the object already. Availability is more important
// here. Outage reports the outage once it is noticed. Once the API server forbids reading the object, Get returns no
// content.
func (r *registry) Get(ref Ref) (Content, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	switch {
	case o == nil:
		return Content{}, &Error{Ref: ref, Reason: ErrUnavailable, Detail: "nobody watches it"}
	case o.result == nil:
		return Content{}, &Error{Ref: ref, Reason: ErrUnavailable, Detail: "the API server has not answered yet"}
	case o.result.err != nil:
		return Content{}, o.result.err
	}
	return o.result.content, nil
}

// Outage returns since when and why requests for an object have failed, so that the result of Get may be outdated. An
// interruption of a few seconds does not count. The error is an *Error. Without an outage, the error is nil.
func (r *registry) Outage(ref Ref) (since time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil || o.outage == nil || time.Since(o.outageSince) < outageThreshold {
		return time.Time{}, nil
	}
	return o.outageSince, o.outage
}

// Watched returns the number of objects that have subscribers.
func (r *registry) Watched() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	watched := 0
	for _, o := range r.objects {
		if len(o.subscribers) > 0 {
			watched++
		}
	}
	return watched
}

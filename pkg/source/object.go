// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"sync"
	"time"
)

// object is what is known of one object, who holds it, and who waits for it. Safe for concurrent use.
type object struct {
	ref Ref
	// stop ends whatever keeps the object current. It is set while the registry's lock is held.
	stop func()

	mu sync.Mutex
	// holders are told of each change, by a function that must neither block nor call back. A map, so that to hold twice is
	// to hold once.
	holders map[string]func()
	// last is the last verdict; nil before the first.
	last *verdict
	// known is closed when there is a verdict that is fresh enough for who comes now.
	known chan struct{}
	// resting is since when the object is immutable and nothing keeps it current. Zero: something does.
	resting time.Time
	// away is why there is no word of the object, since awaySince. Nil: there is.
	away      *Error
	awaySince time.Time
	// asked has something in it when somebody new came who wants a fresh verdict.
	asked chan struct{}
}

// tolerated is how long there may be no word of an object before that is called an outage: an API server that is replaced, or a
// connection that breaks, is back within seconds.
const tolerated = 10 * time.Second

// verdict is what Get returns.
type verdict struct {
	content Content
	err     *Error
}

// same reports whether who knows one verdict need not be told of the other.
func (v verdict) same(other verdict) bool {
	if v.err != nil && other.err != nil {
		return v.err.Reason == other.err.Reason
	}
	return v.err == nil && other.err == nil && v.content.SameVersion(other.content)
}

func newObject(ref Ref) *object {
	return &object{ref: ref, holders: map[string]func(){}, known: make(chan struct{}), asked: make(chan struct{}, 1)}
}

// found records that the object has content.
func (o *object) found(c Content) {
	c.Seen = time.Now()
	o.decide(verdict{content: c})
}

// missing records that the object does not exist.
func (o *object) missing() { o.decide(verdict{err: &Error{Ref: o.ref, Reason: ErrNotFound}}) }

// failed records that the source can't tell. What was seen before stays, unless it is forbidden now: who may not read the object
// any more is not given a copy of it either.
func (o *object) failed(e *Error) {
	o.lost(e)
	if o.seen() && !errors.Is(e, ErrForbidden) {
		o.answered()
		return
	}
	o.decide(verdict{err: e})
}

// lost records that there is no word of the object. A later reason replaces an earlier one; the time stays.
func (o *object) lost(e *Error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away == nil {
		o.awaySince = time.Now()
	}
	o.away = e
}

// reached records that there is word of the object again.
func (o *object) reached() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away, o.awaySince = nil, time.Time{}
}

// outage is since when there has been no word of the object, and why; nil if there is, or was until shortly.
func (o *object) outage() (since time.Time, why *Error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away == nil || time.Since(o.awaySince) < tolerated {
		return time.Time{}, nil
	}
	return o.awaySince, o.away
}

// decide sets the verdict and tells the holders if it is another one.
func (o *object) decide(v verdict) {
	o.mu.Lock()
	defer o.mu.Unlock()
	changed := o.last == nil || !o.last.same(v)
	o.last = &v
	o.closeKnown()
	if !changed {
		return
	}
	for _, changed := range o.holders {
		changed()
	}
}

// answered ends the waiting with the verdict that is there.
func (o *object) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closeKnown()
}

func (o *object) closeKnown() {
	select {
	case <-o.known:
	default:
		close(o.known)
	}
}

// seen reports whether the last verdict says if the object exists.
func (o *object) seen() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last != nil && (o.last.err == nil || errors.Is(o.last.err, ErrNotFound))
}

// rest records that nothing keeps the object current any more.
func (o *object) rest() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.resting = time.Now()
}

// wake reports whether the object has been resting for that long. If so it rests no more, and who waits for it
// waits for the next verdict: the caller has to bring it about.
func (o *object) wake(after time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.resting.IsZero() || time.Since(o.resting) < after {
		return false
	}
	o.resting, o.known = time.Time{}, make(chan struct{})
	return true
}

// ask has who was refused ask again now, and who waits wait for the answer. After any other verdict it does nothing.
func (o *object) ask() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last == nil || o.last.err == nil || !errors.Is(o.last.err, ErrForbidden) {
		return
	}
	select {
	case <-o.known:
		o.known = make(chan struct{})
	default: // somebody waits for the next one already
	}
	select {
	case o.asked <- struct{}{}:
	default: // the next try comes at once already
	}
}

// wait waits for a verdict.
func (o *object) wait(ctx context.Context) {
	o.mu.Lock()
	known := o.known
	o.mu.Unlock()
	select {
	case <-known:
	case <-ctx.Done():
	}
}

// get returns the last verdict.
func (o *object) get() (Content, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.last == nil:
		return Content{}, &Error{Ref: o.ref, Reason: ErrUnavailable, Detail: "the API server has not answered yet"}
	case o.last.err != nil:
		return Content{}, o.last.err
	}
	return o.last.content, nil
}

// holds reports whether holder holds the object.
func (o *object) holds(holder string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, held := o.holders[holder]
	return held
}

// hold makes holder one of the object's, and tells it if there is something to tell.
func (o *object) hold(holder string, changed func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holders[holder] = changed
	if o.last != nil {
		changed()
	}
}

// letGo makes holder none of the object's, and reports whether it was the last.
func (o *object) letGo(holder string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.holders, holder)
	return len(o.holders) == 0
}

// registry is the objects that are held. Safe for concurrent use.
type registry struct {
	// keep starts to keep an object current, and returns what will end it. The lock is held.
	keep func(*object) (stop func())
	// recheck is how long an immutable object is taken to be still there.
	recheck time.Duration

	mu      sync.Mutex
	objects map[Ref]*object
}

func newRegistry(recheck time.Duration) registry {
	return registry{recheck: recheck, objects: map[Ref]*object{}}
}

// Watch keeps ref current for holder until Unwatch. It calls changed after each change of what Get returns, the first
// included, and at once if Get has something to return already. changed must neither block nor call back. To watch again changes
// nothing.
func (r *registry) Watch(ref Ref, holder string, changed func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	switch {
	case o == nil:
		o = newObject(ref)
		r.objects[ref] = o
		// First, so that the holder is told of each change, however soon the second one follows.
		o.hold(holder, changed)
		o.stop = r.keep(o)
		return
	case !o.holds(holder) && o.wake(0):
		// An immutable object, for somebody new: it may have been deleted and made anew since it was read.
		o.stop = r.keep(o)
	case !o.holds(holder):
		// For one who was refused the next try may be minutes away, and the new holder may be what gives the right.
		o.ask()
	}
	o.hold(holder, changed)
}

// Unwatch lets go of ref. With its last holder the watch ends and the content is forgotten.
func (r *registry) Unwatch(ref Ref, holder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil {
		return
	}
	if o.letGo(holder) {
		delete(r.objects, ref)
		o.stop()
	}
}

// Wait waits until a watched object is known, or is known not to be readable now, or ctx ends. For one that is immutable, and was
// read before, that is the answer to the reading anew that a new holder brings about.
func (r *registry) Wait(ctx context.Context, ref Ref) {
	if o := r.object(ref); o != nil {
		o.wait(ctx)
	}
}

// Get returns the content of a watched object as last seen. It does not wait. The error is an *Error. Content that was seen
// stays readable while the source is away, but not when it forbids reading.
func (r *registry) Get(ref Ref) (Content, error) {
	if o := r.object(ref); o != nil {
		r.refresh(o)
		return o.get()
	}
	return Content{}, &Error{Ref: ref, Reason: ErrUnavailable, Detail: "nobody watches it"}
}

// Away tells since when there has been no word of a watched object, and why: what Get returns may be outdated. A watch that was
// interrupted and is back within seconds does not count. The error is an *Error, and nil if all is well.
func (r *registry) Away(ref Ref) (since time.Time, err error) {
	if o := r.object(ref); o != nil {
		if since, why := o.outage(); why != nil {
			return since, why
		}
	}
	return time.Time{}, nil
}

// refresh has an immutable object read anew if that was long ago.
func (r *registry) refresh(o *object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.objects[o.ref] == o && o.wake(r.recheck) {
		o.stop = r.keep(o)
	}
}

// Watched is how many distinct objects are watched.
func (r *registry) Watched() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	distinct := len(r.objects)
	for ref := range r.objects {
		if ref.Newest {
			ref.Newest = false
			if r.objects[ref] != nil {
				distinct--
			}
		}
	}
	return distinct
}

func (r *registry) object(ref Ref) *object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[ref]
}

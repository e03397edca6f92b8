// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
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
	state   state
	// known is closed when the first state is set.
	known chan struct{}
}

// state is the last that was seen of an object.
type state struct {
	// seen: the source has told whether the object exists.
	seen bool
	// exists: it does, and content is valid.
	exists  bool
	content Content
	// err is why the source can't tell at the moment. What was seen before it stays.
	err *Error
	// at is when seen was last confirmed by content.
	at time.Time
}

// found records that the object has content.
func (o *object) found(c Content) {
	o.update(func(s *state) bool {
		changed := !s.seen || !s.exists || s.err != nil || !s.content.SameVersion(c)
		*s = state{seen: true, exists: true, content: c, at: time.Now()}
		return changed
	})
}

// missing records that the object does not exist.
func (o *object) missing() {
	o.update(func(s *state) bool {
		changed := !s.seen || s.exists || s.err != nil
		*s = state{seen: true, at: time.Now()}
		return changed
	})
}

// failed records that the source can't tell.
func (o *object) failed(reason error, detail string) {
	o.update(func(s *state) bool {
		changed := s.err == nil || s.err.Reason != reason
		s.err = &Error{Ref: o.ref, Reason: reason, Detail: detail}
		return changed
	})
}

// recovered records that the source can tell again, and that nothing is known to have changed.
func (o *object) recovered() {
	o.update(func(s *state) bool {
		if s.err == nil || !s.seen {
			return false
		}
		s.err = nil
		return true
	})
}

// update changes the state and tells the holders if change returns true.
func (o *object) update(change func(*state) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !change(&o.state) {
		return
	}
	select {
	case <-o.known:
	default:
		close(o.known)
	}
	for _, changed := range o.holders {
		changed()
	}
}

// seen reports whether the source ever told if the object exists.
func (o *object) seen() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.seen
}

// wait waits for the first state.
func (o *object) wait(ctx context.Context) {
	select {
	case <-o.known:
	case <-ctx.Done():
	}
}

// last returns the last state.
func (o *object) last() (Content, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.state
	switch {
	case s.err == nil && !s.seen:
		return Content{}, &Error{Ref: o.ref, Reason: ErrUnavailable, Detail: "the API server has not answered yet"}
	case s.err != nil && (!s.seen || s.err.Reason == ErrForbidden):
		// Who may not read the object any more is not given a copy of it either.
		return Content{}, s.err
	case !s.exists:
		return Content{}, &Error{Ref: o.ref, Reason: ErrNotFound}
	}
	return s.content, nil
}

// registry is the objects that are held. Safe for concurrent use.
type registry struct {
	mu      sync.Mutex
	objects map[Ref]*object
}

func newRegistry() registry { return registry{objects: map[Ref]*object{}} }

// watch makes holder a holder of ref. For the first one start is called, with the new object; it returns what
// will end the watching. If the state is known already, changed is called at once.
func (r *registry) watch(ref Ref, holder string, changed func(), start func(*object) (stop func())) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil {
		o = &object{ref: ref, holders: map[string]func(){}, known: make(chan struct{})}
		r.objects[ref] = o
		o.stop = start(o)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holders[holder] = changed
	select {
	case <-o.known:
		changed()
	default:
	}
}

// Unwatch lets go of ref. With its last holder the watch ends and the content is forgotten.
func (r *registry) Unwatch(ref Ref, holder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.objects[ref]
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.holders, holder)
	if len(o.holders) == 0 {
		delete(r.objects, ref)
		o.stop()
	}
}

// Wait waits until the first state of a watched object is known, or ctx ends.
func (r *registry) Wait(ctx context.Context, ref Ref) {
	if o := r.object(ref); o != nil {
		o.wait(ctx)
	}
}

// Get returns the content of a watched object as last seen. It neither waits nor makes a request. The error is an *Error. Content
// that was seen stays readable while the source is away, but not when it forbids reading.
func (r *registry) Get(ref Ref) (Content, error) {
	if o := r.object(ref); o != nil {
		return o.last()
	}
	return Content{}, &Error{Ref: ref, Reason: ErrUnavailable, Detail: "nobody watches it"}
}

// Watched is how many distinct objects are watched.
func (r *registry) Watched() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.objects)
}

func (r *registry) object(ref Ref) *object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[ref]
}

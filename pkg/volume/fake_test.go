// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// fakeSource is a Source whose test chooses the answers and their time. It notifies subscribers as package source does.
type fakeSource struct {
	mu       sync.Mutex
	objects  map[source.Ref]*fakeObject
	versions int
	// afterGet, if it is set, is called after Get has its answer, without a lock.
	afterGet func()
	// onRetry, if it is set, is called by Retry, without a lock.
	onRetry func(source.Ref)
	// pods are the answers of Pod, by namespace and name, unless podErr is set.
	pods   map[string]*corev1.Pod
	podErr error
	// allocatable is the answer of Allocatable, unless allocatableErr is set.
	allocatable    corev1.ResourceList
	allocatableErr error
	// calls counts the calls of each method that makes a request.
	calls map[string]int
	// newest has the subscriptions that require the newest version.
	newest []string
}

type fakeObject struct {
	subscribers map[string]func()
	answered    chan struct{} // closed when there is an answer
	content     source.Content
	err         error
	// outage is the reason of an outage of the object, which began at outageSince.
	outage      error
	outageSince time.Time
	// waiting is closed when a caller waits.
	waiting     chan struct{}
	waitingOnce sync.Once
}

func newFakeSource() *fakeSource {
	return &fakeSource{objects: map[source.Ref]*fakeObject{}, pods: map[string]*corev1.Pod{}, calls: map[string]int{}}
}

// object returns the object. An object that the test has not set does not exist. The caller holds f.mu.
func (f *fakeSource) object(ref source.Ref) *fakeObject {
	o := f.objects[ref]
	if o == nil {
		o = &fakeObject{subscribers: map[string]func(){}, answered: make(chan struct{}), waiting: make(chan struct{})}
		o.err = &source.Error{Ref: ref, Reason: source.ErrNotFound}
		close(o.answered)
		f.objects[ref] = o
	}
	return o
}

// hang makes the state of an object unknown until set or fail. The channel is closed when a caller waits.
func (f *fakeSource) hang(ref source.Ref) (waiting <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	o.answered = make(chan struct{})
	o.err = &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "the API server has not answered yet"}
	o.waiting, o.waitingOnce = make(chan struct{}), sync.Once{}
	return o.waiting
}

func (f *fakeSource) set(ref source.Ref, c content) {
	f.answer(ref, func(o *fakeObject) {
		f.versions++
		o.err, o.content = nil, source.Content{Data: c.bytes(), UID: "uid", ResourceVersion: strconv.Itoa(f.versions)}
	})
}

// setFields sets the fields of the pod of a request. version is the version of the object; the digest is of the fields.
func (f *fakeSource) setFields(r Request, version string, fields content) {
	ref := source.Ref{Kind: attributes.Pod, Namespace: namespace, Name: r.Pod.Name}
	f.answer(ref, func(o *fakeObject) {
		o.err, o.content = nil, source.Content{
			Data: fields.bytes(), UID: r.Pod.UID, ResourceVersion: version, Digest: fmt.Sprint(fields),
		}
	})
}

func (f *fakeSource) fail(ref source.Ref, reason error) {
	f.answer(ref, func(o *fakeObject) { o.err = &source.Error{Ref: ref, Reason: reason, Detail: "says the fake"} })
}

// refuse makes the Node authorizer refuse an object.
func (f *fakeSource) refuse(ref source.Ref) {
	f.answer(ref, func(o *fakeObject) {
		o.err = &source.Error{Ref: ref, Reason: source.ErrForbidden, Detail: "no relationship found", Undeclared: true}
	})
}

func (f *fakeSource) answer(ref source.Ref, change func(*fakeObject)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	change(o)
	select {
	case <-o.answered:
	default:
		close(o.answered)
	}
	for _, changed := range o.subscribers {
		changed()
	}
}

// setOutage begins an outage of an object at a time; a zero time ends the outage.
func (f *fakeSource) setOutage(ref source.Ref, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	o.outage, o.outageSince = nil, since
	if !since.IsZero() {
		o.outage = &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "connection refused"}
	}
}

func (f *fakeSource) setPod(pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[pod.Namespace+"/"+pod.Name] = pod
}

// failPod makes Pod return an error with a reason. A nil reason ends the failure.
func (f *fakeSource) failPod(reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.podErr = nil
	if reason != nil {
		f.podErr = &source.Error{Ref: source.Ref{Kind: attributes.Pod}, Reason: reason, Detail: "says the fake"}
	}
}

// setAllocatable sets the answer of Allocatable. With a reason, the answer is an error.
func (f *fakeSource) setAllocatable(list corev1.ResourceList, reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allocatable, f.allocatableErr = list, nil
	if reason != nil {
		f.allocatableErr = &source.Error{Ref: source.Ref{Kind: "Node"}, Reason: reason, Detail: "says the fake"}
	}
}

func (f *fakeSource) setAfterGet(hook func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.afterGet = hook
}

// forget drops all subscribers, like the end of the process.
func (f *fakeSource) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.objects {
		clear(o.subscribers)
	}
}

// called returns the number of calls of a method.
func (f *fakeSource) called(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *fakeSource) subscribed(ref source.Ref, subscriber string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.object(ref).subscribers[subscriber]
	return ok
}

// subscriptions returns the objects and their subscribers.
func (f *fakeSource) subscriptions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for ref, o := range f.objects {
		for subscriber := range o.subscribers {
			all = append(all, fmt.Sprintf("%s for %s", ref, subscriber))
		}
	}
	slices.Sort(all)
	return all
}

func (f *fakeSource) Subscribe(ref source.Ref, subscriber string, newest bool, changed func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["Subscribe"]++
	if newest {
		f.newest = append(f.newest, fmt.Sprintf("%s for %s", ref, subscriber))
	}
	o := f.object(ref)
	o.subscribers[subscriber] = changed
	select {
	case <-o.answered:
		changed()
	default:
	}
}

func (f *fakeSource) Unsubscribe(ref source.Ref, subscriber string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.object(ref).subscribers, subscriber)
}

func (f *fakeSource) Wait(ctx context.Context, ref source.Ref) {
	f.mu.Lock()
	o := f.object(ref)
	answered := o.answered
	o.waitingOnce.Do(func() { close(o.waiting) })
	f.mu.Unlock()
	select {
	case <-answered:
	case <-ctx.Done():
	}
}

func (f *fakeSource) Get(ref source.Ref) (source.Content, error) {
	f.mu.Lock()
	f.calls["Get"]++
	o, afterGet := f.object(ref), f.afterGet
	c, err := o.content, o.err
	if len(o.subscribers) == 0 {
		c, err = source.Content{}, &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "it has no subscriber"}
	}
	f.mu.Unlock()
	if afterGet != nil {
		afterGet()
	}
	if err != nil {
		return source.Content{}, err
	}
	return c, nil
}

func (f *fakeSource) Retry(ref source.Ref) {
	f.mu.Lock()
	f.calls["Retry"]++
	retry := f.onRetry
	f.mu.Unlock()
	if retry != nil {
		retry(ref)
	}
}

func (f *fakeSource) Read(ctx context.Context, ref source.Ref) (source.Content, error) {
	f.Wait(ctx, ref)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["Read"]++
	o := f.object(ref)
	if o.err != nil {
		return source.Content{}, o.err
	}
	return o.content, nil
}

// askedForNewest returns the subscriptions since its last call that required the newest version.
func (f *fakeSource) askedForNewest() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.newest
	f.newest = nil
	slices.Sort(all)
	return all
}

func (f *fakeSource) Outage(ref source.Ref) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	return o.outageSince, o.outage
}

func (f *fakeSource) Watched() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, o := range f.objects {
		if len(o.subscribers) > 0 {
			n++
		}
	}
	return n
}

func (f *fakeSource) Pod(_ context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["Pod"]++
	pod := f.pods[namespace+"/"+name]
	switch ref := (source.Ref{Kind: attributes.Pod, Namespace: namespace, Name: name}); {
	case f.podErr != nil:
		return nil, f.podErr
	case pod == nil:
		return nil, &source.Error{Ref: ref, Reason: source.ErrNotFound}
	case string(pod.UID) != uid:
		return nil, &source.Error{Ref: ref, Reason: source.ErrNotFound, Detail: "there is another pod of this name"}
	}
	return pod, nil
}

func (f *fakeSource) Allocatable(context.Context) (corev1.ResourceList, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["Allocatable"]++
	return f.allocatable, f.allocatableErr
}

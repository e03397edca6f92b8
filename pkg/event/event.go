// SPDX-License-Identifier: Apache-2.0

// Package event writes Events about pods (kubectl describe pod shows them).
//
// Events with the same reason about the same volume of a pod share an Event object with a count. The Event that was
// recorded last about a volume is written last: a pause between writes delays it, and drops only Events that it
// replaces. Writing is best effort: the Recorder drops and counts an Event that can't be written, and does not retry.
// client-go has a recorder with more features, but it links half of the OpenAPI libraries
// (docs/decisions/0006-own-event-recorder.md).
package event

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/apierror"
	"github.com/fsuser-csi/fsuser-csi/internal/text"
)

const (
	// queued is the number of Events that can wait to be written. The Recorder drops more Events.
	queued = 256
	// remembered is the number of kinds of Event (volume and reason) that are counted in an existing object.
	remembered = 1024
	// quiet is the pause between two writes of one kind of Event. Events during the pause are counted, and the last one
	// waits.
	quiet = 10 * time.Second
	// maxMessage is the longest message that the API server accepts, in bytes (ValidateEventUpdate of Kubernetes).
	maxMessage = 1024
	// writeTimeout bounds a request.
	writeTimeout = 10 * time.Second
)

// Pod identifies the pod that an Event is about.
type Pod struct {
	Namespace, Name, UID string
}

// Type is the type of an Event: Normal or Warning.
type Type = string

// The types of the API.
const (
	Normal  = corev1.EventTypeNormal
	Warning = corev1.EventTypeWarning
)

// Event is something that happened to a volume of a pod, or to the driver's own pod.
type Event struct {
	Pod Pod
	// Volume is the name of the volume in the pod. It is empty in an Event about the driver. It is not written: Events
	// about the same volume replace each other.
	Volume string
	Type   Type
	// Reason is a CamelCase word for machines, and Message a sentence for people. Neither has a value of an object.
	Reason  string
	Message string
}

// Recorder writes Events. It is safe for concurrent use.
type Recorder struct {
	client          rest.Interface
	component, host string
	queue           chan Event

	dropped atomic.Int64
}

// New returns a Recorder that writes with client, which must know core/v1. Each Event names component and host (the
// node). New starts nothing: call Run.
func New(client rest.Interface, component, host string) *Recorder {
	return &Recorder{client: client, component: component, host: host, queue: make(chan Event, queued)}
}

// Record queues an Event for writing. It never blocks.
func (r *Recorder) Record(e Event) {
	select {
	case r.queue <- e:
	default:
		r.dropped.Add(1)
	}
}

// Dropped returns the number of Events that could not be written.
func (r *Recorder) Dropped() int64 { return r.dropped.Load() }

// Run writes Events until ctx ends. Events that wait at that time are lost.
func (r *Recorder) Run(ctx context.Context) {
	s := series{known: map[kind]*written{}, waiting: map[subject]Event{}}
	for {
		var over <-chan time.Time
		next, due, some := s.next()
		if some {
			over = time.After(time.Until(due))
		}
		select {
		case e := <-r.queue:
			if !s.mustWait(e, time.Now()) {
				r.write(ctx, &s, e, time.Now())
			}
		case <-over:
			delete(s.waiting, next.subject())
			r.write(ctx, &s, next, time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// subject is the volume that an Event is about.
type subject struct {
	pod    Pod
	volume string
}

// kind is what the Events of one Event object have in common.
type kind struct {
	subject
	reason string
}

func (e Event) subject() subject { return subject{e.Pod, e.Volume} }

func (e Event) kind() kind { return kind{e.subject(), e.Reason} }

// written is the Event object of a kind.
type written struct {
	name  string
	count int32
	at    time.Time
}

// series has the Event objects that were written, and the Events that wait. Only Run uses it.
type series struct {
	known map[kind]*written
	// waiting has the last Event of a subject during the pause of its kind. It stays small, because only Events of known
	// kinds wait.
	waiting map[subject]Event
}

// mustWait counts an Event and reports whether it has to wait. In both cases the Event replaces a waiting earlier one
// of its subject: the earlier Event is counted already, and must not be written after this one.
func (s *series) mustWait(e Event, now time.Time) bool {
	delete(s.waiting, e.subject())
	w := s.known[e.kind()]
	if w == nil {
		return false
	}
	w.count++
	if now.Sub(w.at) >= quiet {
		return false
	}
	s.waiting[e.subject()] = e
	return true
}

// next returns the Event whose wait ends first, and the end of the wait.
func (s *series) next() (e Event, due time.Time, some bool) {
	for _, waiting := range s.waiting {
		var at time.Time // It stays zero, so that the Event is due at once, if the object has been forgotten.
		if w := s.known[waiting.kind()]; w != nil {
			at = w.at.Add(quiet)
		}
		if !some || at.Before(due) {
			e, due, some = waiting, at, true
		}
	}
	return e, due, some
}

// remember forgets kinds whose pause is over, to make room for k. Without room, the next Event of the kind makes a new
// object.
func (s *series) remember(k kind, w *written) {
	if len(s.known) >= remembered {
		maps.DeleteFunc(s.known, func(_ kind, old *written) bool { return w.at.Sub(old.at) >= quiet })
	}
	if len(s.known) < remembered {
		s.known[k] = w
	}
}

// write writes an Event that has been counted.
func (r *Recorder) write(ctx context.Context, s *series, e Event, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	log := klog.LoggerWithValues(klog.FromContext(ctx), "pod", klog.KRef(e.Pod.Namespace, e.Pod.Name), "reason", e.Reason)
	if err := r.sendSafely(klog.NewContext(ctx, log), s, e, now); err != nil {
		r.dropped.Add(1)
		log.V(2).Info("Event not written", "err", apierror.Message(err))
	}
}

// sendSafely prevents a panic in writing one Event from ending the driver.
func (r *Recorder) sendSafely(ctx context.Context, s *series, e Event, now time.Time) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The value of the panic could hold a secret, so the log shows only its type.
			err = fmt.Errorf("writing panicked with a %T", p)
			klog.FromContext(ctx).Error(err, "The driver has a bug", "stack", string(debug.Stack()))
		}
	}()
	return r.send(ctx, s, e, now)
}

func (r *Recorder) send(ctx context.Context, s *series, e Event, now time.Time) error {
	k := e.kind()
	if w := s.known[k]; w != nil {
		err := r.repeat(ctx, e, w, now)
		if !apierrors.IsNotFound(err) {
			w.at = now
			return err
		}
		// The API server deletes Events after an hour.
		delete(s.known, k)
	}
	object := r.object(e, now)
	err := r.client.Post().Namespace(e.Pod.Namespace).Resource("events").Body(object).Do(ctx).Error()
	if err == nil {
		s.remember(k, &written{name: object.Name, count: 1, at: now})
	}
	return err
}

func (r *Recorder) object(e Event, now time.Time) *corev1.Event {
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			// client-go names Events in the same way: the pod, and something unique. A name has at most 253 characters.
			Name:      strings.TrimRight(e.Pod.Name[:min(len(e.Pod.Name), 200)], "-.") + "." + strings.ToLower(rand.Text()[:16]),
			Namespace: e.Pod.Namespace,
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: e.Pod.Namespace, Name: e.Pod.Name, UID: types.UID(e.Pod.UID),
		},
		Type: e.Type, Reason: e.Reason, Message: text.Shorten(e.Message, maxMessage-len("…")),
		Source:              corev1.EventSource{Component: r.component, Host: r.host},
		ReportingController: r.component, ReportingInstance: r.host,
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
}

// repeat increments the count of the existing object.
func (r *Recorder) repeat(ctx context.Context, e Event, w *written, now time.Time) error {
	patch, err := json.Marshal(map[string]any{
		"count": w.count, "lastTimestamp": metav1.NewTime(now), "message": text.Shorten(e.Message, maxMessage-len("…")),
		"type": e.Type,
	})
	if err != nil {
		return err
	}
	return r.client.Patch(types.MergePatchType).Namespace(e.Pod.Namespace).Resource("events").Name(w.name).Body(patch).
		Do(ctx).Error()
}

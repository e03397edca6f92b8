// SPDX-License-Identifier: Apache-2.0

// Package event writes Events about pods, where those who run the pods look first (kubectl describe pod).
//
// Like events repeat in one object with a count. Writing is best effort: an Event that can't be written is dropped and counted,
// never waited for. client-go has a recorder that does more, and links half of the OpenAPI libraries to do it.
package event

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

const (
	// queued is how many Events wait to be written; more are dropped.
	queued = 256
	// remembered is how many kinds of Event (pod and reason) are counted up instead of written anew.
	remembered = 1024
	// quiet is the pause between two writes of one kind of Event. What comes in between is counted and written with the next.
	quiet = 10 * time.Second
	// maxMessage is what the API server takes, in bytes (ValidateEventUpdate of Kubernetes).
	maxMessage = 1024
	// writeTimeout bounds one request.
	writeTimeout = 10 * time.Second
)

// Pod names the pod that an Event is about.
type Pod struct {
	Namespace, Name, UID string
}

// Type is how bad it is.
type Type = string

// The types of the API.
const (
	Normal  = corev1.EventTypeNormal
	Warning = corev1.EventTypeWarning
)

// Event is something that happened to a volume of a pod.
type Event struct {
	Pod  Pod
	Type Type
	// Reason is a CamelCase word for machines, Message a sentence for people. Never a value of an object.
	Reason  string
	Message string
}

// Recorder writes Events. Safe for concurrent use.
type Recorder struct {
	client          rest.Interface
	component, host string
	queue           chan Event

	mu      sync.Mutex
	dropped int
}

// New returns a Recorder that writes through client, which must know core/v1. component and host (the node) are named in each Event.
// It starts nothing: call Run.
func New(client rest.Interface, component, host string) *Recorder {
	return &Recorder{client: client, component: component, host: host, queue: make(chan Event, queued)}
}

// Record hands over an Event to be written. It never blocks.
func (r *Recorder) Record(e Event) {
	select {
	case r.queue <- e:
	default:
		r.drop()
	}
}

// Dropped is how many Events could not be written.
func (r *Recorder) Dropped() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

func (r *Recorder) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped++
}

// Run writes Events until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	s := series{known: map[kind]*written{}}
	for {
		select {
		case e := <-r.queue:
			if err := r.write(ctx, &s, e, time.Now()); err != nil {
				r.drop()
				klog.V(2).ErrorS(err, "Event not written", "pod", klog.KRef(e.Pod.Namespace, e.Pod.Name), "reason", e.Reason)
			}
		case <-ctx.Done():
			return
		}
	}
}

// kind is what Events have in common that are counted in one object.
type kind struct {
	pod    Pod
	reason string
}

// written is the object of a kind.
type written struct {
	name  string
	count int32
	at    time.Time
}

// series remembers the objects that were written. Run alone uses it.
type series struct {
	known map[kind]*written
}

func (r *Recorder) write(ctx context.Context, s *series, e Event, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	k := kind{e.Pod, e.Reason}
	w := s.known[k]
	if w != nil {
		w.count++
		if now.Sub(w.at) < quiet {
			return nil
		}
		err := r.repeat(ctx, e, w, now)
		if !apierrors.IsNotFound(err) {
			w.at = now
			return err
		}
		// The API server forgets Events after an hour.
	}
	object := r.object(e, now)
	err := r.client.Post().Namespace(e.Pod.Namespace).Resource("events").Body(object).Do(ctx).Error()
	if err != nil {
		return err
	}
	if len(s.known) >= remembered {
		s.known = map[kind]*written{}
	}
	s.known[k] = &written{name: object.Name, count: 1, at: now}
	return nil
}

func (r *Recorder) object(e Event, now time.Time) *corev1.Event {
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			// As client-go names them: the pod, and something unique.
			Name:      fmt.Sprintf("%s.%s", truncate(e.Pod.Name, 200), rand.Text()[:16]),
			Namespace: e.Pod.Namespace,
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: e.Pod.Namespace, Name: e.Pod.Name, UID: types.UID(e.Pod.UID),
		},
		Type: e.Type, Reason: e.Reason, Message: truncate(e.Message, maxMessage),
		Source:              corev1.EventSource{Component: r.component, Host: r.host},
		ReportingController: r.component, ReportingInstance: r.host,
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
}

// repeat counts up the object that is there.
func (r *Recorder) repeat(ctx context.Context, e Event, w *written, now time.Time) error {
	patch, err := json.Marshal(map[string]any{
		"count": w.count, "lastTimestamp": metav1.NewTime(now), "message": truncate(e.Message, maxMessage), "type": e.Type,
	})
	if err != nil {
		return err
	}
	return r.client.Patch(types.MergePatchType).Namespace(e.Pod.Namespace).Resource("events").Name(w.name).Body(patch).Do(ctx).Error()
}

// truncate cuts s to at most n bytes of whole characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

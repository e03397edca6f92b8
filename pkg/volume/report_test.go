// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// eventLog collects the Events of a driver.
type eventLog struct {
	mu     sync.Mutex
	events []event.Event
}

// count returns the number of Events with a reason whose message contains a text.
func (l *eventLog) count(reason, says string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Reason == reason && strings.Contains(e.Message, says) {
			n++
		}
	}
	return n
}

func (l *eventLog) record(e event.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// take returns the types and reasons of the Events so far, and removes the Events. It fails the test unless each Event
// is about the pod's volume and contains the text.
func (l *eventLog) take(t *testing.T, r Request, says string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var reasons []string
	for _, e := range l.events {
		reasons = append(reasons, string(e.Type)+" "+e.Reason)
		if e.Pod != event.Pod(r.Pod) || e.Volume != newVolume(r).name() || !strings.Contains(e.Message, says) {
			t.Errorf("the event does not say %q of %+v: %+v", says, r.Pod, e)
		}
	}
	l.events = nil
	return strings.Join(reasons, ", ")
}

func eventHarness(t *testing.T) (*harness, *eventLog) {
	log := &eventLog{}
	return newFakeHarness(t, func(c *Config) { c.Events = log.record }), log
}

func TestOwnerWithoutUIDIsThePodsUser(t *testing.T) {
	runAs := func(user int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: &user} }
	container := func(user int64, volume string) corev1.Container {
		return corev1.Container{SecurityContext: runAs(user),
			VolumeMounts: []corev1.VolumeMount{{Name: volume, MountPath: "/v"}}}
	}
	for _, test := range []struct {
		name   string
		attrs  []string // instead of a secretName
		change func(*corev1.Pod)
		reason error // the error of Pod
		owner  uint32
		event  string
	}{
		{name: "the container has one", change: func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = runAs(70) },
			owner: 70},
		{name: "a sidecar that does not mount the volume has another", change: func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = runAs(70)
			p.Spec.InitContainers = []corev1.Container{container(71, "other")}
		}, owner: 70},
		{name: "an init container that mounts the volume has another: root, and an event", change: func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = runAs(70)
			p.Spec.InitContainers = []corev1.Container{container(71, "v")}
		}, event: "Warning VolumeOwnerUnknown"},
		{name: "the pod has none: root, and an event", change: func(*corev1.Pod) {}, event: "Warning VolumeOwnerUnknown"},
		{name: "the described volume has a defaultUser, and the pod no user", attrs: []string{"volume", "described"},
			change: func(p *corev1.Pod) {
				described := secretVolume("keys")
				described.Secret.DefaultUser, described.Secret.DefaultMode = ptr.To[int64](71), ptr.To[int32](0o400)
				p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "described", VolumeSource: described})
			}, owner: 71},
		{name: "the pod may not be read: the publish fails", reason: source.ErrForbidden},
		{name: "the pod can't be read now: the publish fails", reason: source.ErrUnavailable},
		{name: "the pod is gone: the publish fails", reason: source.ErrNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, log := eventHarness(t)
			h.secret("keys", content{"k": "v"})
			if test.attrs == nil {
				test.attrs = []string{"secretName", "keys"}
			}
			r := h.request("v", test.attrs...)
			if test.reason != nil {
				h.fake.failPod(test.reason)
				before := h.snapshot()
				isErr(t, h.Publish(t.Context(), r), test.reason, "read the pod")
				h.unchanged(before)
				if got := log.take(t, r, ""); got != "" {
					t.Errorf("events %q", got)
				}
				return
			}
			pod := podOf(r)
			test.change(pod)
			h.setPod(pod)
			h.publish(r)
			want := map[string]permissions{"k": {0o400, test.owner, 0}}
			h.hasPermissions(r, want)
			if got := log.take(t, r, "runAsUser"); got != test.event {
				t.Errorf("events %q, want %q", got, test.event)
			}

			// The pod is read once, and the owner stays. Without a record, the pod is read again for a volume of the pod.
			reads := 1
			if r.Spec.Volume == "" {
				h.fake.failPod(source.ErrNotFound)
			} else {
				reads = 2
			}
			h.publish(r)
			h.restart()
			h.secret("keys", content{"k": "new"})
			h.publish(r)
			h.shows(r, content{"k": "new"})
			h.hasPermissions(r, want)
			h.loseRecords()
			h.publish(r)
			h.hasPermissions(r, want)
			if n := h.fake.called("Pod"); n != reads {
				t.Errorf("the pod was read %d times, want %d", n, reads)
			}
			h.unpublish(r)
		})
	}
}

func TestUIDInTheAttributesNeedsNoPod(t *testing.T) {
	h, log := eventHarness(t)
	h.secret("keys", content{"k": "v"})
	r := h.request("v", "secretName", "keys", "uid", "1000")
	h.publish(r)
	if n, got := h.fake.called("Pod"), log.take(t, r, ""); n != 0 || got != "" {
		t.Errorf("the pod was read %d times, events %q", n, got)
	}
	h.unpublish(r)
}

// A failed publish is repeated until it succeeds, so only the successful publish makes the Event.
func TestAnOwnerThatIsUnknownIsToldOnceAndOnlyBySuccess(t *testing.T) {
	h, log := eventHarness(t)
	r := h.request("v", "secretName", "keys")
	for range 3 {
		isErr(t, h.Publish(t.Context(), r), source.ErrNotFound)
	}
	if got := log.take(t, r, ""); got != "" {
		t.Errorf("events of failures: %q", got)
	}
	h.secret("keys", content{"k": "v"})
	for range 3 {
		h.publish(r)
	}
	if got := log.take(t, r, "runAsUser"); got != "Warning VolumeOwnerUnknown" {
		t.Errorf("events %q, want one", got)
	}
	h.unpublish(r)
}

// A call that holds the lock of a volume may hang, and then people need status and metrics most.
func TestStatusAndMetricsWaitForNoVolume(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "v"})
	r := h.request("v", "secretName", "keys", "uid", "1000")
	h.publish(r)
	unlock, err := h.locks.lock(t.Context(), r.ID)
	must(t, err)
	defer unlock()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if all := h.Status(); len(all) != 1 || all[0].Bytes != 1 {
			t.Errorf("status: %+v", all)
		}
		if _, err := h.registry.Gather(); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-answered:
	case <-time.After(patience):
		t.Fatal("status and metrics wait for the lock of a volume")
	}
}

func TestEventsTellOnceWhatWentWrongAndThatItIsOver(t *testing.T) {
	for _, test := range []struct {
		name   string
		reason error
		event  string
	}{
		{"the object was deleted", source.ErrNotFound, "Warning VolumeObjectMissing"},
		{"the object is forbidden", source.ErrForbidden, "Warning VolumeRefreshFailed"},
		{"the API server is away, which is nobody's fault", source.ErrUnavailable, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, log := eventHarness(t)
			h.secret("keys", content{"k": "v"})
			r := h.request("v", "secretName", "keys", "uid", "1000")
			h.publish(r)
			h.fake.fail(secretRef("keys"), test.reason)
			for range 3 {
				h.publish(r)
			}
			if got := log.take(t, r, `"v" stay as they are`); got != test.event {
				t.Errorf("events %q, want %q", got, test.event)
			}
			if status := h.statusOf(r); status.Stale == "" || status.StaleSince == nil {
				t.Errorf("status: %+v", status)
			}
			if h.gauge("fsuser_oldest_stale_volume_seconds") <= 0 {
				t.Error("no volume is stale, by the metric")
			}
			h.secret("keys", content{"k": "new"})
			h.publish(r)
			recovered := ""
			if test.event != "" {
				recovered = "Normal VolumeRefreshRecovered"
			}
			if got := log.take(t, r, `"v" show`); got != recovered {
				t.Errorf("events %q, want %q", got, recovered)
			}
			h.unpublish(r)
			if got := log.take(t, r, ""); got != "" {
				t.Errorf("events after unpublish: %q", got)
			}
		})
	}
}

// Metric and status show an outage for each volume that follows an object. There is no Event and no line in the log.
func TestVolumesAreStaleWhileThereIsNoWordOfTheirObject(t *testing.T) {
	h, log := eventHarness(t)
	h.secret("keys", content{"k": "v"})
	h.secret("others", content{"k": "v"})
	r, other := h.request("v", "secretName", "keys", "uid", "1000"),
		h.request("other", "secretName", "others", "uid", "1000")
	fixed := h.request("fixed", "secretName", "keys", "uid", "1000", "refresh", "off")
	for _, r := range []Request{r, other, fixed} {
		h.publish(r)
	}
	before, lines := h.snapshot(), logged.Text()
	h.fake.setOutage(secretRef("keys"), time.Now().Add(-time.Minute))
	if n := h.gauge("fsuser_stale_volumes"); n != 1 {
		t.Errorf("%v volumes are stale, want 1", n)
	}
	if s := h.gauge("fsuser_oldest_stale_volume_seconds"); s < 60 || s > 70 {
		t.Errorf("stale for %v s, want 60", s)
	}
	h.publish(r)
	for _, s := range h.Status() {
		stale := s.Volume == "v"
		if stale != (s.Stale != "") || stale != (s.StaleSince != nil) || stale &&
			!strings.Contains(s.Stale, `Secret "ns/keys": can't be read now: connection refused`) {
			t.Errorf("status of %s: %+v", s.Volume, s)
		}
	}
	refreshed := *h.statusOf(r).Refreshed
	h.publish(r)
	if at := *h.statusOf(r).Refreshed; at != refreshed {
		t.Errorf("refreshed at %v by a republish that could ask nobody, before: %v", at, refreshed)
	}

	h.fake.setOutage(secretRef("keys"), time.Time{})
	if n := h.gauge("fsuser_stale_volumes"); n != 0 || h.gauge("fsuser_oldest_stale_volume_seconds") != 0 {
		t.Errorf("%v volumes are stale after the outage", n)
	}
	if s := h.statusOf(r); s.Stale != "" || s.StaleSince != nil {
		t.Errorf("status after the outage: %+v", s)
	}
	if got := log.take(t, r, ""); got != "" {
		t.Errorf("events: %q", got)
	}
	if now := logged.Text(); now != lines {
		t.Errorf("log: %s", strings.TrimPrefix(now, lines))
	}
	h.unchanged(before)
	for _, r := range []Request{r, other, fixed} {
		h.unpublish(r)
	}
}

func TestStatusTellsWhatThereIsToKnowAndNoValue(t *testing.T) {
	h, _ := eventHarness(t)
	if all := h.Status(); all == nil || len(all) != 0 {
		t.Errorf("of nothing: %v", all)
	}
	h.secret("keys", content{"k": "the value"})
	r := h.request("v", "secretName", "keys", "uid", "1000", "gid", "2000", "mode", "0600")
	h.publish(r)
	s := h.statusOf(r)
	if s.Refreshed == nil || s.ResourceVersion == "" {
		t.Errorf("%+v", s)
	}
	want := status.Volume{
		PodNamespace: namespace, PodName: "pod-v", PodUID: "uid-v", Volume: "v", Object: `Secret "ns/keys"`, UID: 1000,
		GID: 2000, Mode: "0600",
		ResourceVersion: s.ResourceVersion, Refresh: "watch", Bytes: int64(len("the value")), Refreshed: s.Refreshed,
	}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	b, err := json.Marshal(s)
	must(t, err)
	if strings.Contains(string(b), "the value") {
		t.Errorf("the value is in %s", b)
	}
	h.unpublish(r)
}

func TestPanicInARefreshIsARefreshThatFailed(t *testing.T) {
	h, _ := eventHarness(t)
	h.secret("keys", content{"k": "v"})
	h.secret("others", content{"k": "v"})
	r, other := h.request("v", "secretName", "keys", "uid", "1000"),
		h.request("other", "secretName", "others", "uid", "1000")
	h.publish(r)
	h.publish(other)
	var once sync.Once
	h.fake.setAfterGet(func() { once.Do(func() { panic("the secret value") }) })
	h.run()
	h.secret("keys", content{"k": "new"})
	h.becomes(r, content{"k": "new"}) // The refresh was repeated.
	h.secret("others", content{"k": "new"})
	h.becomes(other, content{"k": "new"})
	testkit.Eventually(t, patience, "the panic in the log",
		func() bool { return strings.Contains(logged.Text(), "panicked with a string") })
	if strings.Contains(logged.Text(), "the secret value") {
		t.Error("what panicked is in the log")
	}
	h.fake.setAfterGet(nil)
	h.unpublish(r)
	h.unpublish(other)
}

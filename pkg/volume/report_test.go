// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// eventLog collects what a driver would write as Events.
type eventLog struct {
	mu     sync.Mutex
	events []event.Event
}

func (l *eventLog) record(e event.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// take returns the reasons of the events so far, and forgets them. Each must be about the pod's volume and hold the text.
func (l *eventLog) take(t *testing.T, r Request, says string) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var reasons []string
	for _, e := range l.events {
		reasons = append(reasons, e.Type+" "+e.Reason)
		if e.Pod != event.Pod(r.Pod) || e.Volume != newVolume(r).name() || !strings.Contains(e.Message, says) {
			t.Errorf("the event does not say %q of %+v: %+v", says, r.Pod, e)
		}
	}
	l.events = nil
	return strings.Join(reasons, ", ")
}

func eventWorld(t *testing.T) (*world, *eventLog) {
	log := &eventLog{}
	return newFakeWorld(t, func(c *Config) { c.Events = log.record }), log
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Uid
}

func TestOwnerWithoutUIDIsThePodsUser(t *testing.T) {
	seventy := uint32(70)
	for _, test := range []struct {
		name   string
		sent   bool // the content comes with the request
		pod    source.Pod
		err    error
		owner  uint32
		event  string
		says   string
		refuse error
	}{
		{name: "the pod has one", pod: source.Pod{User: &seventy}, owner: 70},
		{name: "the pod has none: root, and an event", event: "Warning VolumeOwnerUnknown", says: "runAsUser"},
		{name: "the pod may not be read: the publish fails", err: &source.Error{Reason: source.ErrForbidden}, refuse: source.ErrForbidden},
		{name: "the pod may not be read, and kubelet brings the content: root, and an event", sent: true,
			err: &source.Error{Reason: source.ErrForbidden}, event: "Warning VolumeOwnerUnknown", says: "forbidden"},
		{name: "the pod can't be read now, and kubelet brings the content: the publish fails", sent: true,
			err: &source.Error{Reason: source.ErrUnavailable}, refuse: source.ErrUnavailable},
		{name: "the pod can't be read now: the publish fails", err: &source.Error{Reason: source.ErrUnavailable}, refuse: source.ErrUnavailable},
		{name: "the pod is gone: the publish fails", err: &source.Error{Reason: source.ErrNotFound}, refuse: source.ErrNotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, log := eventWorld(t)
			w.fake.pod, w.fake.podErr = test.pod, test.err
			w.secret("keys", content{"k": "v"})
			attrs := []string{"secretName", "keys"}
			if test.sent {
				attrs = nil
			}
			r := w.request("v", attrs...)
			if test.refuse != nil {
				before := w.snapshot()
				isErr(t, w.Publish(t.Context(), r), test.refuse, "uid is not set")
				w.unchanged(before)
				return
			}
			w.publish(r)
			if got := ownerOf(t, r.Target+"/k"); got != test.owner {
				t.Errorf("the file belongs to %d, want %d", got, test.owner)
			}
			if got := log.take(t, r, test.says); got != test.event {
				t.Errorf("events %q, want %q", got, test.event)
			}

			// It is asked once: a pod that gets a debug container does not change the owner of what it has.
			w.fake.pod, w.fake.podErr = source.Pod{}, nil
			w.publish(r)
			w.restart()
			w.secret("keys", content{"k": "new"})
			if test.sent {
				r.Secrets = map[string]string{"k": "new"}
			}
			w.publish(r)
			w.shows(r, content{"k": "new"})
			if got := ownerOf(t, r.Target+"/k"); got != test.owner || w.fake.pods != 1 {
				t.Errorf("after a restart the file belongs to %d, want %d; the pod was read %d times", got, test.owner, w.fake.pods)
			}

			// Not even if the record is lost.
			for _, file := range w.recordFiles() {
				must(t, os.Remove(file))
			}
			w.restart()
			w.publish(r)
			if got := ownerOf(t, r.Target+"/k"); got != test.owner {
				t.Errorf("after the record was lost the file belongs to %d, want %d", got, test.owner)
			}
			w.unpublish(r)
		})
	}
}

func TestUIDInTheAttributesNeedsNoPod(t *testing.T) {
	w, log := eventWorld(t)
	w.fake.podErr = &source.Error{Reason: source.ErrForbidden}
	w.secret("keys", content{"k": "v"})
	r := w.request("v", "secretName", "keys", "uid", "1000")
	w.publish(r)
	if got := log.take(t, r, ""); w.fake.pods != 0 || got != "" {
		t.Errorf("the pod was read %d times, events %q", w.fake.pods, got)
	}
	w.unpublish(r)
}

func TestNodePublishSecretRefIsWatchedByTheNameThatThePodTells(t *testing.T) {
	w, _ := eventWorld(t)
	w.fake.pod = source.Pod{SecretRefs: map[string]string{"v": "keys", "other": "another"}}
	r := w.request("v", "uid", "1000")
	w.publish(r) // at once: the content is in the request
	w.shows(r, content{"k": "from the request"})
	w.run()
	w.secret("keys", content{"k": "watched"})
	w.becomes(r, content{"k": "watched"})

	// While all is well kubelet's copy is never newer than the watched object.
	w.publish(r)
	w.shows(r, content{"k": "watched"})

	// Without the right to read it kubelet's copy is what there is.
	w.fake.fail(secretRef("keys"), source.ErrForbidden)
	r.Secrets = map[string]string{"k": "sent along"}
	w.publish(r)
	w.shows(r, content{"k": "sent along"})

	w.restart()
	w.run()
	w.secret("keys", content{"k": "watched after a restart"})
	w.becomes(r, content{"k": "watched after a restart"})
	w.unpublish(r)
	if left := w.watches(); len(left) > 0 {
		t.Errorf("watches are left: %q", left)
	}
}

// The driver is a pod, and kubelet is not: it may read what the driver can't.
func TestNodePublishSecretRefShowsWhatKubeletSendsIfThatMayBeNewer(t *testing.T) {
	for _, test := range []struct {
		name   string
		behind func(w *world)
		// version that is known of the same content.
		version string
	}{
		{"the driver does not reach the API server", func(w *world) { w.fake.setAway(secretRef("keys"), time.Now().Add(-time.Hour)) }, "1"},
		{"the driver may not read it any more", func(w *world) {
			w.fake.fail(secretRef("keys"), source.ErrForbidden)
			w.fake.setAway(secretRef("keys"), time.Now().Add(-time.Hour))
		}, ""},
		{"it was immutable, and is made anew", func(w *world) {
			w.fake.answer(secretRef("keys"), func(o *fakeObject) { o.content.Immutable, o.content.Seen = true, time.Now().Add(-time.Minute) })
		}, "1"},
		{"the driver's watch is behind", func(w *world) {
			w.fake.answer(secretRef("keys"), func(o *fakeObject) { o.content.Seen = time.Now().Add(-time.Minute) })
		}, "1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, log := eventWorld(t)
			w.fake.pod = source.Pod{SecretRefs: map[string]string{"v": "keys"}}
			w.secret("keys", content{"k": "old"})
			r := w.request("v", "uid", "1000")
			r.Secrets = map[string]string{"k": "old"}
			w.publish(r)
			w.fake.setAway(secretRef("keys"), time.Now().Add(-time.Hour))
			if w.gauge("fsuser_stale_volumes") != 0 {
				t.Errorf("what has just been published is stale: %+v", one(t, w))
			}
			w.fake.setAway(secretRef("keys"), time.Time{})
			w.publish(r)
			test.behind(w)
			w.publish(r)
			if s := one(t, w); s.ResourceVersion != test.version {
				t.Errorf("the same content has version %q, want %q", s.ResourceVersion, test.version)
			}
			r.Secrets = map[string]string{"k": "new"}
			w.publish(r)
			w.present(r, content{"k": "new"})
			if s := one(t, w); s.Stale != "" || w.gauge("fsuser_stale_volumes") != 0 || time.Since(*s.Refreshed) > time.Minute {
				t.Errorf("what kubelet has just sent is not current: %+v", s)
			}

			// It was long ago.
			long := time.Now().Add(-servedFor)
			w.get(r.ID).served.Store(&long)
			if _, away := w.Source.Away(secretRef("keys")); away != nil {
				if s := one(t, w); s.StaleSince == nil || !s.StaleSince.Equal(long) || w.gauge("fsuser_stale_volumes") != 1 {
					t.Errorf("kubelet came last at %v: %+v", long, s)
				}
				must(t, w.refresh(t.Context(), r.ID)) // as after a restart, if others hold the object
				w.present(r, content{"k": "new"})
			}

			w.fake.setAway(secretRef("keys"), time.Time{})
			w.secret("keys", content{"k": "newer"})
			w.run()
			w.becomes(r, content{"k": "newer"})
			if got := log.take(t, r, ""); got != "" {
				t.Errorf("events %q", got)
			}
			w.unpublish(r)
		})
	}
}

// F-29: another volume's watch of the Secret, which is behind, was there before.
func TestNodePublishSecretRefDoesNotGoBackToWhatIsWatched(t *testing.T) {
	w, _ := eventWorld(t)
	w.fake.pod = source.Pod{SecretRefs: map[string]string{"v": "keys"}}
	w.secret("keys", content{"k": "old"})
	w.fake.answer(secretRef("keys"), func(o *fakeObject) { o.content.Seen = time.Now().Add(-time.Minute) })
	r := w.request("v", "uid", "1000")
	r.Secrets = map[string]string{"k": "new"}
	w.publish(r)
	must(t, w.refresh(t.Context(), r.ID))
	w.present(r, content{"k": "new"})
	w.publish(r)
	w.present(r, content{"k": "new"})
	w.run()
	w.secret("keys", content{"k": "newer"})
	w.becomes(r, content{"k": "newer"})
	// What has just been seen may be newer than what was on its way.
	w.publish(r)
	w.present(r, content{"k": "newer"})
	w.unpublish(r)
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
			w, log := eventWorld(t)
			w.secret("keys", content{"k": "v"})
			r := w.request("v", "secretName", "keys", "uid", "1000")
			w.publish(r)
			w.fake.fail(secretRef("keys"), test.reason)
			for range 3 {
				w.publish(r)
			}
			if got := log.take(t, r, `"v" stay as they are`); got != test.event {
				t.Errorf("events %q, want %q", got, test.event)
			}
			if status := one(t, w); status.Stale == "" || status.StaleSince == nil {
				t.Errorf("status: %+v", status)
			}
			if w.gauge("fsuser_oldest_stale_volume_seconds") <= 0 {
				t.Error("no volume is stale, by the metric")
			}
			w.secret("keys", content{"k": "new"})
			w.publish(r)
			recovered := ""
			if test.event != "" {
				recovered = "Normal VolumeRefreshRecovered"
			}
			if got := log.take(t, r, `"v" show`); got != recovered {
				t.Errorf("events %q, want %q", got, recovered)
			}
			w.unpublish(r)
			if got := log.take(t, r, ""); got != "" {
				t.Errorf("events after unpublish: %q", got)
			}
		})
	}
}

// An outage is told by metric and status, of each volume that would otherwise follow its object, and by nothing else.
func TestVolumesAreStaleWhileThereIsNoWordOfTheirObject(t *testing.T) {
	w, log := eventWorld(t)
	w.secret("keys", content{"k": "v"})
	w.secret("others", content{"k": "v"})
	r, other := w.request("v", "secretName", "keys", "uid", "1000"), w.request("other", "secretName", "others", "uid", "1000")
	fixed := w.request("fixed", "secretName", "keys", "uid", "1000", "refresh", "off")
	for _, r := range []Request{r, other, fixed} {
		w.publish(r)
	}
	before, lines := w.snapshot(), logged.Text()
	w.fake.setAway(secretRef("keys"), time.Now().Add(-time.Minute))
	if n := w.gauge("fsuser_stale_volumes"); n != 1 {
		t.Errorf("%v volumes are stale, want 1", n)
	}
	if s := w.gauge("fsuser_oldest_stale_volume_seconds"); s < 60 || s > 70 {
		t.Errorf("stale for %v s, want 60", s)
	}
	w.publish(r)
	all, err := w.Status(t.Context())
	must(t, err)
	for _, s := range all {
		stale := s.Volume == "v"
		if stale != (s.Stale != "") || stale != (s.StaleSince != nil) || stale && !strings.Contains(s.Stale, `Secret "ns/keys": can't be read now: connection refused`) {
			t.Errorf("status of %s: %+v", s.Volume, s)
		}
	}
	refreshed := *statusOf(t, w, "v").Refreshed
	w.publish(r)
	if at := *statusOf(t, w, "v").Refreshed; at != refreshed {
		t.Errorf("refreshed at %v by a republish that could ask nobody, before: %v", at, refreshed)
	}

	w.fake.setAway(secretRef("keys"), time.Time{})
	if n := w.gauge("fsuser_stale_volumes"); n != 0 || w.gauge("fsuser_oldest_stale_volume_seconds") != 0 {
		t.Errorf("%v volumes are stale after the outage", n)
	}
	if s := statusOf(t, w, "v"); s.Stale != "" || s.StaleSince != nil {
		t.Errorf("status after the outage: %+v", s)
	}
	if got := log.take(t, r, ""); got != "" {
		t.Errorf("events: %q", got)
	}
	if now := logged.Text(); now != lines {
		t.Errorf("log: %s", strings.TrimPrefix(now, lines))
	}
	w.unchanged(before)
	for _, r := range []Request{r, other, fixed} {
		w.unpublish(r)
	}
}

func statusOf(t *testing.T, w *world, volume string) Status {
	t.Helper()
	all, err := w.Status(t.Context())
	must(t, err)
	for _, s := range all {
		if s.Volume == volume {
			return s
		}
	}
	t.Fatalf("no volume %s in %+v", volume, all)
	return Status{}
}

func one(t *testing.T, w *world) Status {
	t.Helper()
	all, err := w.Status(t.Context())
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("%d volumes, want one", len(all))
	}
	return all[0]
}

func TestStatusTellsWhatThereIsToKnowAndNoValue(t *testing.T) {
	w, _ := eventWorld(t)
	if all, err := w.Status(t.Context()); err != nil || all == nil || len(all) != 0 {
		t.Errorf("of nothing: %v, %v", all, err)
	}
	w.secret("keys", content{"k": "the value"})
	r := w.request("v", "secretName", "keys", "uid", "1000", "gid", "2000", "mode", "0600")
	w.publish(r)
	s := one(t, w)
	if s.Refreshed == nil || s.ResourceVersion == "" {
		t.Errorf("%+v", s)
	}
	want := Status{
		PodNamespace: namespace, PodName: "pod-v", PodUID: "uid-v", Volume: "v", Object: `Secret "ns/keys"`, UID: 1000, GID: 2000, Mode: "0600",
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
	w.unpublish(r)
}

func TestPanicInARefreshIsARefreshThatFailed(t *testing.T) {
	w, _ := eventWorld(t)
	w.secret("keys", content{"k": "v"})
	w.secret("others", content{"k": "v"})
	r, other := w.request("v", "secretName", "keys", "uid", "1000"), w.request("other", "secretName", "others", "uid", "1000")
	w.publish(r)
	w.publish(other)
	var once sync.Once
	w.fake.setAfterGet(func() { once.Do(func() { panic("the secret value") }) })
	w.run()
	w.secret("keys", content{"k": "new"})
	w.becomes(r, content{"k": "new"}) // tried again
	w.secret("others", content{"k": "new"})
	w.becomes(other, content{"k": "new"})
	testkit.Eventually(t, patience, "the panic in the log", func() bool { return strings.Contains(logged.Text(), "panicked with a string") })
	if strings.Contains(logged.Text(), "the secret value") {
		t.Error("what panicked is in the log")
	}
	w.fake.setAfterGet(nil)
	w.unpublish(r)
	w.unpublish(other)
}

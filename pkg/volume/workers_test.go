// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// published publishes volumes with these names. Each shows a Secret of its name.
func (h *harness) published(names ...string) (all []Request) {
	h.t.Helper()
	for _, name := range names {
		h.secret(name, content{"k": "1"})
		r := h.request(name, "secretName", name)
		h.publish(r)
		all = append(all, r)
	}
	return all
}

// stalled publishes a volume, holds its directory, and makes a refresh of the volume stall.
func (h *harness) stalled() (r Request, release func()) {
	h.t.Helper()
	r = h.published("v")[0]
	release = testkit.Stall(h.t, r.TargetPath)
	h.run()
	h.secret("v", content{"k": "2"})
	h.becomesStale(r, "a process holds the volume's directory")
	return r, release
}

func TestStalledVolumesDoNotHoldUpOthers(t *testing.T) {
	const stalled = 8
	var log eventLog
	h := newFakeHarness(t, func(c *Config) { c.Workers = 4; c.Events = log.record })
	healthy := h.published("healthy")[0]
	var held []Request
	var release []func()
	for i := range stalled {
		held = append(held, h.published(fmt.Sprint("held-", i))...)
		release = append(release, testkit.Stall(t, held[i].TargetPath))
	}
	h.run()
	for i := range held {
		h.secret(fmt.Sprint("held-", i), content{"k": "2"})
	}
	for i := range held {
		h.becomesStale(held[i], "a process holds the volume's directory")
	}
	h.secret("healthy", content{"k": "2"})
	h.becomes(healthy, content{"k": "2"})
	if n := h.gauge("fsuser_stale_volumes"); n != stalled {
		t.Errorf("%v stale volumes, want %d", n, stalled)
	}
	if age := h.gauge("fsuser_oldest_refresh_seconds"); age < stallAfter.Seconds() {
		t.Errorf("the oldest refresh has been running for %v s, want at least %v", age, stallAfter)
	}
	if n := h.failures()["refresh stalled"]; n != stalled {
		t.Errorf("%d failures because of a stall, want %d", n, stalled)
	}
	testkit.Eventually(t, patience, "an Event about each stall", func() bool {
		return log.count(reasonRefreshFailed, "a process holds the volume's directory") == stalled
	})

	// Calls for a stalled volume do not wait.
	h.Collect()
	h.publish(held[0])
	if _, err := h.Usage(t.Context(), held[0].ID, held[0].TargetPath); err != nil {
		t.Error(err)
	}
	h.unpublish(held[0])
	h.absent(held[0])

	for _, end := range release {
		end()
	}
	for _, r := range held[1:] {
		h.becomesCurrent(r)
		h.shows(r, content{"k": "2"})
	}
	testkit.Eventually(t, patience, "an Event about each volume that is current again", func() bool {
		return log.count(reasonRecovered, "again") == stalled-1
	})
	testkit.Eventually(t, patience, "no refresh to run",
		func() bool { return h.gauge("fsuser_oldest_refresh_seconds") == 0 })
	reliability.Shown(t, "F-44", fmt.Sprintf("%d stalled volumes, 4 workers: another volume is refreshed; a republish, "+
		"a collection and an unpublish end", stalled))
}

// An overloaded machine can make a refresh slow. The volume is stale then, but only a longer stall gets an Event.
func TestAStallGetsAnEventAfterAWhile(t *testing.T) {
	const moment = time.Millisecond
	for _, test := range []struct {
		name   string
		stalls []time.Duration // one after the other
		stale  string
		events string // during the last stall, and at its end
	}{
		{"not yet stalled", []time.Duration{stallAfter - moment}, "", ""},
		{"stalled", []time.Duration{stallAfter + moment}, errStalled.Error(), ""},
		{"not yet an Event", []time.Duration{stalledEventAfter - moment}, errStalled.Error(), ""},
		{"two stalls", []time.Duration{stalledEventAfter - 2*stallAfter, 3 * stallAfter}, errStalled.Error(), ""},
		{"an Event", []time.Duration{stalledEventAfter + moment}, errStalled.Error(),
			"Warning VolumeRefreshFailed; Normal VolumeRefreshRecovered"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, log := eventHarness(t)
				r := h.published("v")[0]
				h.run()
				synctest.Wait()
				log.take(t, r, "") // about the owner
				var stale, events string
				for i, lasts := range test.stalls {
					release := make(chan struct{})
					h.fake.setAfterGet(func() { <-release })
					h.secret("v", content{"k": fmt.Sprint("new ", i)})
					time.Sleep(lasts)
					synctest.Wait()
					stale, events = h.statusOf(r).Stale, log.take(t, r, "a process holds the volume's directory")
					close(release)
					h.shows(r, content{"k": fmt.Sprint("new ", i)})
					h.becomesCurrent(r)
				}
				if atLast := log.take(t, r, "again"); events+atLast != "" {
					events += "; " + atLast
				}
				if stale != test.stale || events != test.events {
					t.Errorf("stale because of %q, Events %q; want %q and %q", stale, events, test.stale, test.events)
				}
			})
		})
	}
}

// A volume can be published again at once after a stalled volume of the same id was unpublished.
func TestVolumeIsPublishedAgainAfterAStall(t *testing.T) {
	h := newFakeHarness(t)
	r, release := h.stalled()
	h.unpublish(r)
	h.publish(r)
	h.shows(r, content{"k": "2"})
	h.secret("v", content{"k": "3"})
	h.shows(r, content{"k": "3"})
	release()
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	h.present(r, content{"k": "3"})
}

func TestRunEndsAlthoughARefreshIsStalled(t *testing.T) {
	h := newFakeHarness(t)
	r, release := h.stalled()
	h.stop()
	h.stop = nil
	release()
	testkit.Eventually(t, patience, "the refresh to end", func() bool { return h.get(r.ID).refreshingFor() == 0 })
	h.shows(r, content{"k": "2"})
}

func TestNamespacesTakeTurns(t *testing.T) {
	var queue turns
	add := func(namespace, id string) { queue.Push(&volume{id: id, pod: Pod{Namespace: namespace}}) }
	for i := range 3 {
		add("many", fmt.Sprint("m", i))
	}
	add("one", "o0")
	add("two", "t0")
	add("two", "t1")
	var got []string
	for queue.Len() > 0 {
		if len(got) == 3 {
			add("one", "o1") // after the first turn of the namespace
		}
		got = append(got, queue.Pop().id)
	}
	if want := "m0 o0 t0 m1 t1 o1 m2"; strings.Join(got, " ") != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	if len(queue.waiting) != 0 || len(queue.order) != 0 {
		t.Errorf("an empty queue remembers %v, %v", queue.waiting, queue.order)
	}
}

// A volume is locked while it is subscribed again, and a subscription puts it into the queue.
func TestTheQueueNeedsNoLockOfAVolume(t *testing.T) {
	var queue turns
	v := &volume{id: "v"}
	v.mu.Lock()
	defer v.mu.Unlock()
	popped := make(chan *volume, 1)
	go func() {
		queue.Push(v)
		popped <- queue.Pop()
	}()
	select {
	case <-popped:
	case <-time.After(patience):
		t.Fatal("the queue waits for the lock of a volume")
	}
}

// One Secret of many volumes is updated without end. A volume that was written longer ago comes first, whatever is
// queued before it.
func TestAnObjectThatIsUpdatedWithoutEndDoesNotHoldUpOthers(t *testing.T) {
	const many = 50
	h := newFakeHarness(t)
	h.secret("busy", content{"k": "0"})
	var busy []Request
	for i := range many {
		busy = append(busy, h.request(fmt.Sprint("busy-", i), "secretName", "busy"))
		h.publish(busy[i])
	}
	victim := h.published("quiet")[0]
	for range 3 {
		h.secret("busy", content{"k": fmt.Sprint(time.Now())})
		for _, r := range busy {
			must(t, h.refreshNow(r))
		}
	}
	for h.queue.Len() > 0 { // the volumes that the updates queued
		v, _ := h.queue.Get()
		h.queue.Done(v)
	}
	h.secret("busy", content{"k": "1"}) // No worker runs, so all volumes are due at the same time.
	h.secret("quiet", content{"k": "2"})
	v, _ := h.queue.Get()
	h.queue.Done(v)
	if v.id != victim.ID {
		t.Errorf("%s comes first, want %s", v.id, victim.ID)
	}
	must(t, h.refresh(t.Context(), v))
	h.shows(victim, content{"k": "2"})
	reliability.Shown(t, "F-49", fmt.Sprintf("%d volumes of the updated object are due; the volume of another object "+
		"comes first", many))
}

func TestAVolumeIsWrittenAtMostOncePerInterval(t *testing.T) {
	h := newFakeHarness(t)
	r := h.published("v")[0]
	h.run()
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	start, writes := time.Now(), h.counts()["refresh ok"]
	n := 1
	for ; time.Since(start) < 3*minRefreshInterval; n++ {
		h.secret("v", content{"k": fmt.Sprint(n)})
	}
	h.secret("v", content{"k": "last"})
	h.becomes(r, content{"k": "last"})
	most := int(time.Since(start)/minRefreshInterval) + 1
	if got := h.counts()["refresh ok"] - writes; got > most {
		t.Errorf("%d updates in %v made %d writes, want at most %d", n, time.Since(start), got, most)
	}
	reliability.Shown(t, "F-49", "updates without end make one write each 100 ms, and the last one is shown")
}

func TestRefreshInterval(t *testing.T) {
	for _, test := range []struct {
		took    time.Duration
		volumes int
		want    time.Duration
	}{
		{time.Millisecond, 1, minRefreshInterval},
		{50 * time.Millisecond, 1, minRefreshInterval},
		{100 * time.Millisecond, 1, 200 * time.Millisecond},
		{5 * time.Millisecond, 200, 2 * time.Second},
		{time.Millisecond, 2000, 4 * time.Second},
		{900 * time.Millisecond, 2000, maxRefreshInterval},
		{stallAfter, 1, minRefreshInterval}, // A stall takes no CPU.
		{time.Hour, 2000, minRefreshInterval},
	} {
		if got := refreshInterval(test.took, test.volumes); got != test.want {
			t.Errorf("after a refresh that took %v, of one of %d volumes: %v, want %v", test.took, test.volumes, got, test.want)
		}
	}
}

// All volumes that show an object count, regardless of their pods.
func TestTheVolumesOfAnObjectAreCounted(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("shared", content{"k": "1"})
	for i := range 3 {
		h.publish(h.request(fmt.Sprint("v", i), "secretName", "shared"))
	}
	own := h.published("own")[0]
	if got := h.get("csi-v0").share.volumes(); got != 3 {
		t.Errorf("%d volumes show the shared Secret, want 3", got)
	}
	if got := h.get(own.ID).share.volumes(); got != 1 {
		t.Errorf("%d volumes show a Secret of one volume, want 1", got)
	}
}

// A descriptor may become free a moment later, and nothing notifies the driver of that.
func TestRefreshWithoutADescriptorIsRepeated(t *testing.T) {
	h := newFakeHarness(t)
	r := h.published("v")[0]
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	t.Cleanup(func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) })
	h.secret("v", content{"k": "2"})
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	err := h.refreshNow(r)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	isErr(t, err, unix.EMFILE)
	must(t, h.refreshNow(r))
	h.shows(r, content{"k": "2"})
}

// A panic in a check must not end the driver, nor the checks.
func TestCollectionThatPanicsIsRepeated(t *testing.T) {
	h := newFakeHarness(t, func(c *Config) { c.CollectEvery = time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	h.repeat(ctx, func() {
		if calls.Add(1) == 2 {
			cancel()
		}
		panic(content{"the": "secret"})
	})
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls, want 2", n)
	}
	err := safely(t.Context(), "check", func() error { panic(content{"the": "secret"}) })
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error of a panic is %v", err)
	}
	if want := errors.New("failed"); !errors.Is(safely(t.Context(), "check", func() error { return want }), want) {
		t.Error("the error of a check is lost")
	}
}

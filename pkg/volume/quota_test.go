// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/reliability"
)

func limited(change func(*Limits)) func(*Config) {
	return func(c *Config) { change(&c.Limits) }
}

// takes is the memory of a volume with so many keys, whose content takes so many pages: its root, ..data and generation, and a file and a
// link for each key.
func takes(keys, pages int) int64 {
	return int64(3+2*keys)*inodeBytes + int64(pages*os.Getpagesize())
}

// refusedByLimit publishes a volume that must not come to be, and checks that nothing of it is left.
func (w *world) refusedByLimit(r Request, flag string) {
	w.t.Helper()
	before := w.snapshot()
	isErr(w.t, w.Publish(w.t.Context(), r), ErrExhausted, flag)
	w.unchanged(before)
	w.absent(r)
}

func TestTheNodeHasAsManyVolumesAsItMay(t *testing.T) {
	w := newFakeWorld(t, limited(func(l *Limits) { l.Volumes = 2 }))
	w.secret("keys", content{"k": "v"})
	a, b, c := w.request("a", "secretName", "keys"), w.request("b", "secretName", "keys"), w.request("c", "secretName", "keys")
	w.publish(a)
	w.publish(b)
	w.refusedByLimit(c, "2 volumes, as many as it may (--max-volumes)")
	w.publish(b) // one that is there may be published again
	w.unpublish(a)
	w.publish(c)
	w.unpublish(b)
	w.unpublish(c)
}

func TestAPublishThatFailsGivesItsShareBack(t *testing.T) {
	w := newFakeWorld(t, limited(func(l *Limits) { l.Volumes = 1 }))
	w.secret("keys", content{"k": "v"})
	bad, good := w.request("bad", "secretName", "keys"), w.request("good", "secretName", "keys")
	must(t, os.WriteFile(bad.Target, nil, 0o600)) // no directory: the publish fails when its share is taken
	isErr(t, w.Publish(t.Context(), bad), ErrPrecondition)
	w.publish(good)
	w.unpublish(good)
	if got := w.quota.taken(); got != 0 || len(w.quota.shares) != 0 {
		t.Errorf("%d bytes in %d shares are left", got, len(w.quota.shares))
	}
}

func TestTheVolumesOfTheNodeTakeAsMuchMemoryAsTheyMay(t *testing.T) {
	page, most := os.Getpagesize(), takes(2, 3)+takes(2, 2)
	w := newFakeWorld(t, limited(func(l *Limits) { l.NodeBytes = most }))
	w.secret("two", content{"a": "1", "b": strings.Repeat("x", page+1)})
	w.secret("three", content{"a": "1", "b": strings.Repeat("x", 2*page+1)})
	w.secret("one", content{"a": "1"})
	a, b, c := w.request("a", "secretName", "two"), w.request("b", "secretName", "three"), w.request("c", "secretName", "one")
	w.publish(a)
	w.refusedByLimit(b, fmt.Sprintf("with these %d bytes the volumes of the node would take more than the %d that they may (--max-node-bytes)", takes(2, 4), most))
	w.publish(c)

	// A refresh that does not fit leaves what is there, and the next that does is written.
	w.run()
	w.secret("one", content{"a": "1", "b": "2", "c": "3"})
	testkit.Eventually(t, patience, "the volume to be stale", func() bool {
		all, err := w.Status(t.Context())
		return err == nil && strings.Contains(all[1].Stale, "--max-node-bytes")
	})
	w.present(c, content{"a": "1"})
	w.secret("one", content{"a": "1", "b": "2"})
	w.eventuallyShows(c, "what fits", content{"a": "1", "b": "2"})
	if got := w.quota.taken(); got != most {
		t.Errorf("%d bytes are taken, want %d", got, most)
	}
	w.unpublish(a)
	w.unpublish(c)
	reliability.Shown(t, "F-41", "--max-node-bytes")
}

func TestAVolumeThatDoesNotFitIsToldOfOnceWhateverTheOthersTake(t *testing.T) {
	page, log := os.Getpagesize(), &eventLog{}
	w := newFakeWorld(t, limited(func(l *Limits) { l.NodeBytes = takes(1, 1) + takes(1, 2) }), func(c *Config) { c.Events = log.record })
	w.secret("keys", content{"a": "1"})
	w.secret("others", content{"a": strings.Repeat("x", 2*page)})
	r, other := w.request("v", "secretName", "keys", "uid", "0"), w.request("other", "secretName", "others", "uid", "0")
	w.publish(r)
	w.publish(other)
	w.secret("keys", content{"a": strings.Repeat("x", 4*page)})
	isErr(t, w.refresh(t.Context(), r.ID), ErrExhausted)
	w.secret("others", content{"a": "1"})
	must(t, w.refresh(t.Context(), other.ID))
	isErr(t, w.refresh(t.Context(), r.ID), ErrExhausted)
	if got := log.take(t, r, "--max-node-bytes"); got != "Warning VolumeRefreshFailed" {
		t.Errorf("events %q, want one", got)
	}
	w.unpublish(r)
	w.unpublish(other)
}

func TestAsManyObjectsAreWatchedAsMayBe(t *testing.T) {
	w := newFakeWorld(t, limited(func(l *Limits) { l.Objects = 2 }))
	for _, name := range []string{"a", "b", "c"} {
		w.secret(name, content{name: "v"})
	}
	both, third, again := w.request("both", "sources", "[{secret: {name: a}}, {secret: {name: b}}]"), w.request("third", "secretName", "c"), w.request("again", "secretName", "a")
	w.publish(both)
	w.refusedByLimit(third, "3 objects would be watched, more than the 2 that may (--max-watched-objects)")
	w.publish(again)
	w.unpublish(both)
	w.publish(third)
	w.unpublish(again)
	w.unpublish(third)
	reliability.Shown(t, "F-41", "--max-watched-objects")
}

// With a lower limit a restart may find more than it allows: what is there stays, and may shrink.
func TestARestartWithALowerLimitKeepsWhatIsThere(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"a": "1", "b": "2"})
	a, b := w.request("a", "secretName", "keys"), w.request("b", "secretName", "keys")
	w.publish(a)
	w.publish(b)
	w.configure = append(w.configure, limited(func(l *Limits) { l.Volumes, l.Objects, l.NodeBytes = 1, 1, takes(2, 2) }))
	w.restart()
	w.run()
	w.present(a, content{"a": "1", "b": "2"})
	w.present(b, content{"a": "1", "b": "2"})
	w.secret("keys", content{"a": "3", "b": "4"}) // no more than there was
	for _, v := range []Request{a, b} {
		w.eventuallyShows(v, "as much as before", content{"a": "3", "b": "4"})
	}
	testkit.Eventually(t, patience, "both volumes to be current", func() bool {
		all, err := w.Status(t.Context())
		return err == nil && all[0].Stale == "" && all[1].Stale == ""
	})
	w.refusedByLimit(w.request("c", "secretName", "keys"), "--max-volumes")
	w.secret("keys", content{"a": "5", "b": "6", "c": "7"})
	testkit.Eventually(t, patience, "both volumes to be stale", func() bool {
		all, err := w.Status(t.Context())
		return err == nil && strings.Contains(all[0].Stale, "--max-node-bytes") && strings.Contains(all[1].Stale, "--max-node-bytes")
	})
	w.unpublish(a)
	w.unpublish(b)
	reliability.Shown(t, "F-41", "lower limits after a restart")
}

// Who watches nothing new does not make it more.
func TestARestartWithALowerLimitOfObjectsRefusesOnlyNewOnes(t *testing.T) {
	w := newFakeWorld(t)
	for _, name := range []string{"a", "b", "c"} {
		w.secret(name, content{name: "v"})
	}
	a, b := w.request("a", "secretName", "a"), w.request("b", "secretName", "b")
	w.publish(a)
	w.publish(b)
	w.configure = append(w.configure, limited(func(l *Limits) { l.Objects = 1 }))
	w.restart()
	again, none := w.request("again", "secretName", "a"), w.request("none", "uid", "0")
	w.publish(again)
	w.publish(none)
	w.refusedByLimit(w.request("c", "secretName", "c"), "3 objects would be watched, more than the 1 that may (--max-watched-objects)")
	w.refusedByLimit(w.request("both", "sources", "[{secret: {name: a}}, {secret: {name: c}}]"), "3 objects would be watched")
	for _, r := range []Request{a, b, again, none} {
		w.unpublish(r)
	}
}

func TestQuotaIsNeverExceededByMany(t *testing.T) {
	q := newQuota(Limits{Volumes: 10, NodeBytes: 55})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			id := fmt.Sprint(i)
			back, err := q.take(id, 10)
			if err != nil {
				return
			}
			if got := q.taken(); got > 55 {
				t.Errorf("%d bytes are taken", got)
			}
			if grown, err := q.take(id, 15); err == nil {
				grown()
			}
			back()
		})
	}
	all.Wait()
	if q.total != 0 || len(q.shares) != 0 {
		t.Errorf("%d bytes in %d shares are left", q.total, len(q.shares))
	}
}

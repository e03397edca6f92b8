// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
)

func limited(change func(*Limits)) func(*Config) {
	return func(c *Config) { change(&c.Limits) }
}

// takes is the memory of a volume with so many keys, whose content takes so many pages: its root, ..data and generation,
// and a file and a link for each key.
func takes(keys, pages int) int64 {
	return int64(3+2*keys)*projector.InodeBytes + int64(pages*os.Getpagesize())
}

// refusedByLimit publishes a volume that must be refused, and checks that nothing of the volume is left.
func (h *harness) refusedByLimit(r Request, flag string) {
	h.t.Helper()
	before := h.snapshot()
	isErr(h.t, h.Publish(h.t.Context(), r), ErrExhausted, flag)
	h.unchanged(before)
	h.absent(r)
}

func TestTheNodeHasAsManyVolumesAsItMay(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.Volumes = 2 }))
	h.secret("keys", content{"k": "v"})
	a, b, c := h.request("a", "secretName", "keys"), h.request("b", "secretName", "keys"), h.request("c", "secretName", "keys")
	h.publish(a)
	h.publish(b)
	h.refusedByLimit(c, "2 volumes, as many as it may (--max-volumes)")
	h.publish(b) // one that is there may be published again
	h.unpublish(a)
	h.publish(c)
	h.unpublish(b)
	h.unpublish(c)
}

func TestAPublishThatFailsGivesItsShareBack(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.Volumes = 1 }))
	h.secret("keys", content{"k": "v"})
	bad, good := h.request("bad", "secretName", "keys"), h.request("good", "secretName", "keys")
	must(t, os.WriteFile(bad.TargetPath, nil, 0o600)) // no directory: the publish fails when its share is taken
	isErr(t, h.Publish(t.Context(), bad), ErrPrecondition)
	h.publish(good)
	h.unpublish(good)
	if got := h.quota.taken(); got != 0 || len(h.quota.shares) != 0 {
		t.Errorf("%d bytes in %d shares are left", got, len(h.quota.shares))
	}
}

func TestTheVolumesOfTheNodeTakeAsMuchMemoryAsTheyMay(t *testing.T) {
	page, most := os.Getpagesize(), takes(2, 3)+takes(2, 2)
	h := newFakeHarness(t, limited(func(l *Limits) { l.NodeBytes = most }))
	h.secret("two", content{"a": "1", "b": strings.Repeat("x", page+1)})
	h.secret("three", content{"a": "1", "b": strings.Repeat("x", 2*page+1)})
	h.secret("one", content{"a": "1"})
	a, b, c := h.request("a", "secretName", "two"), h.request("b", "secretName", "three"), h.request("c", "secretName", "one")
	h.publish(a)
	h.refusedByLimit(b, fmt.Sprintf("with these %d bytes the volumes of the node would take more than the %d that they may (--max-node-bytes)", takes(2, 4), most))
	h.publish(c)

	// A refresh that does not fit leaves the old version, and the next version that fits is written.
	h.run()
	h.secret("one", content{"a": "1", "b": "2", "c": "3"})
	h.becomesStale(c, "--max-node-bytes")
	h.present(c, content{"a": "1"})
	h.secret("one", content{"a": "1", "b": "2"})
	h.becomes(c, content{"a": "1", "b": "2"})
	if got := h.quota.taken(); got != most {
		t.Errorf("%d bytes are taken, want %d", got, most)
	}
	h.unpublish(a)
	h.unpublish(c)
	reliability.Shown(t, "F-41", "--max-node-bytes")
}

func TestAVolumeThatDoesNotFitIsToldOfOnceWhateverTheOthersTake(t *testing.T) {
	page, log := os.Getpagesize(), &eventLog{}
	h := newFakeHarness(t, limited(func(l *Limits) { l.NodeBytes = takes(1, 1) + takes(1, 2) }), func(c *Config) { c.Events = log.record })
	h.secret("keys", content{"a": "1"})
	h.secret("others", content{"a": strings.Repeat("x", 2*page)})
	r, other := h.request("v", "secretName", "keys", "uid", "0"), h.request("other", "secretName", "others", "uid", "0")
	h.publish(r)
	h.publish(other)
	h.secret("keys", content{"a": strings.Repeat("x", 4*page)})
	isErr(t, h.refreshNow(r), ErrExhausted)
	h.secret("others", content{"a": "1"})
	must(t, h.refreshNow(other))
	isErr(t, h.refreshNow(r), ErrExhausted)
	if got := log.take(t, r, "--max-node-bytes"); got != "Warning VolumeRefreshFailed" {
		t.Errorf("events %q, want one", got)
	}
	h.unpublish(r)
	h.unpublish(other)
}

func TestAsManyObjectsAreWatchedAsMayBe(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.Objects = 2 }))
	for _, name := range []string{"a", "b", "c"} {
		h.secret(name, content{name: "v"})
	}
	both := h.described("both", projectedVolume(secretProjection("a"), secretProjection("b")))
	third, again := h.request("third", "secretName", "c"), h.request("again", "secretName", "a")
	h.publish(both)
	h.refusedByLimit(third, "3 objects would be watched, more than the 2 that may be (--max-watched-objects)")
	h.publish(again)
	h.unpublish(both)
	h.publish(third)
	h.unpublish(again)
	h.unpublish(third)
	reliability.Shown(t, "F-41", "--max-watched-objects")
}

// After a restart with a lower limit there may be more than the limit allows: what is there stays, and may shrink.
func TestARestartWithALowerLimitKeepsWhatIsThere(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": "1", "b": "2"})
	a, b := h.request("a", "secretName", "keys"), h.request("b", "secretName", "keys")
	h.publish(a)
	h.publish(b)
	h.configure = append(h.configure, limited(func(l *Limits) { l.Volumes, l.Objects, l.NodeBytes = 1, 1, takes(2, 2) }))
	h.restart()
	h.run()
	h.present(a, content{"a": "1", "b": "2"})
	h.present(b, content{"a": "1", "b": "2"})
	h.secret("keys", content{"a": "3", "b": "4"}) // no more than there was
	for _, v := range []Request{a, b} {
		h.becomes(v, content{"a": "3", "b": "4"})
		h.becomesCurrent(v)
	}
	h.refusedByLimit(h.request("c", "secretName", "keys"), "--max-volumes")
	h.secret("keys", content{"a": "5", "b": "6", "c": "7"})
	for _, v := range []Request{a, b} {
		h.becomesStale(v, "--max-node-bytes")
		h.unpublish(v)
	}
	reliability.Shown(t, "F-41", "lower limits after a restart")
}

// A volume that watches nothing new does not exceed the limit.
func TestARestartWithALowerLimitOfObjectsRefusesOnlyNewOnes(t *testing.T) {
	h := newFakeHarness(t)
	for _, name := range []string{"a", "b", "c"} {
		h.secret(name, content{name: "v"})
	}
	a, b := h.request("a", "secretName", "a"), h.request("b", "secretName", "b")
	h.publish(a)
	h.publish(b)
	h.configure = append(h.configure, limited(func(l *Limits) { l.Objects = 1 }))
	h.restart()
	again, none := h.request("again", "secretName", "a"), h.request("none", "uid", "0")
	h.publish(again)
	h.publish(none)
	h.refusedByLimit(h.request("c", "secretName", "c"), "3 objects would be watched, more than the 1 that may be (--max-watched-objects)")
	h.refusedByLimit(h.described("both", projectedVolume(secretProjection("a"), secretProjection("c"))), "3 objects would be watched")
	for _, r := range []Request{a, b, again, none} {
		h.unpublish(r)
	}
}

func TestQuotaIsNeverExceededByMany(t *testing.T) {
	q := newQuota(Limits{Volumes: 10, NodeBytes: 55})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			id := fmt.Sprint(i)
			back, err := q.reserve(id, 10)
			if err != nil {
				return
			}
			if got := q.taken(); got > 55 {
				t.Errorf("%d bytes are taken", got)
			}
			if grown, err := q.reserve(id, 15); err == nil {
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

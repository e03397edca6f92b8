// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/test/reliability"
)

// needs are the points that are not passed unless something happens at another one first.
func needs() map[string][2]string {
	return map[string][2]string{
		// A writer that was killed left something.
		"projector-leftover": {"projector-data-tmp-made", "kill"},
		// A publish failed.
		"publish-undo": {"publish-built", "error"},
	}
}

// kills kills the driver once at each of its failpoints, then at random points and at random times, while all kinds of things happen. After
// each round everything must be as it should.
func kills(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	for _, object := range objects() {
		w.set(object)
	}
	for i := range 4 {
		w.want(owners()[i], objects()[i%len(objects())])
	}
	w.settle("publish the first volumes")
	readers := startReaders(t, w.driver.Root)

	all := points(t)
	steps, random := all, rounds(5, 500)
	if c.access == "node" {
		random = rounds(5, 100)
		if !long() { // the other access has shown what each step leaves
			steps = nil
		}
	}
	for together := range slices.Chunk(steps, rounds(5, 1)) {
		for _, p := range w.killAtEach(together) {
			// Another kill kept it from being passed: once more, alone.
			if len(w.killAtEach([]point{p})) > 0 {
				t.Errorf("the driver was never at %s", p.name)
			}
		}
		readers.check()
	}

	// A step that fails instead of being the last one: publish, refresh and unpublish are tried again, and come to the same end.
	failing := 0
	w.failing = true
	for _, p := range steps {
		if p.fails {
			w.arm(p.name, "error")
			w.round(nil)
			if !w.disarm(p.name) {
				t.Errorf("the driver was never at %s", p.name)
			}
			w.check("after an error at " + p.name)
			failing++
		}
	}

	w.failing = false

	for enough := w.deaths + random; w.deaths < enough; {
		p := all[rand.N(len(all))]
		w.arm(p.name, fmt.Sprint("kill ", rand.N(6)))
		w.killAt = time.Now().Add(rand.N(400 * time.Millisecond))
		w.round([]point{p})
		w.disarm(p.name)
		w.check(fmt.Sprintf("after %d kills, the last at %s and at a random time", w.deaths, p.name))
		readers.check()
	}

	for len(w.volumes) > 0 {
		w.drop()
	}
	w.settle("unpublish everything")
	w.check("at the end")
	reads := readers.stop()
	if !t.Failed() {
		reliability.Shown(t, "F-08", fmt.Sprintf("%d kills, at each of %d points and at random times; %d errors", w.deaths, len(steps), failing))
		reliability.Shown(t, "F-35", fmt.Sprintf("%d reads of whole volumes during %d kills", reads, w.deaths))
	}
}

// killAtEach has a round in which the driver is killed at each of some points. It returns those at which it never was.
func (w *world) killAtEach(points []point) (missed []point) {
	w.t.Helper()
	before := w.deaths
	for _, p := range points {
		w.arm(p.name, "kill")
	}
	w.round(points)
	for _, p := range points {
		if !w.disarm(p.name) {
			missed = append(missed, p)
		}
	}
	if killed, fired := w.deaths-before, len(points)-len(missed); killed < fired {
		w.t.Errorf("%d kills at %d of the points %v", killed, fired, points)
	}
	w.check(fmt.Sprintf("after kills at %v", points))
	return missed
}

// objects are what changes all the time: two Secrets and a ConfigMap.
func objects() []string { return []string{"a", "b", "map"} }

func owners() []owned {
	return []owned{
		{1000, 1000, 0o400, false}, {1001, 2001, 0o440, true}, {0, 0, 0o600, false}, {65534, 7, 0o644, true}, {2147483647, 2147483647, 0o500, false},
	}
}

// round lets happen whatever can: pods come and go, objects change, connections break, kubelet and driver restart, and what they left is
// tampered with. What the points need is done first.
func (w *world) round(points []point) {
	w.t.Helper()
	for _, p := range points {
		if first, ok := needs()[p.name]; ok {
			w.arm(first[0], first[1])
		}
	}
	// Objects change while volumes are there, and while they come.
	w.set(objects()[0])
	w.want(owners()[rand.N(len(owners()))], objects()[rand.N(len(objects()))])
	w.set(objects()[1])
	w.settle("publish a volume")
	w.set(objects()[0])
	w.set(objects()[2])
	w.converge("after objects changed")

	w.cluster.breakConnections()
	for _, object := range objects() { // so that all watches are waited for
		w.set(object)
	}
	w.converge("after connections broke")

	w.kubelet.Republish()
	w.settle("publish again what is published")

	w.drop()
	w.settle("unpublish a volume")
	w.converge("after an unpublish")

	// A pod that kubelet has lost: its mount is gone, its directories too, and nobody calls.
	lost := w.removePod()
	w.kubelet.Forget(lost.pod, lost.volume().Name)
	w.must(unix.Unmount(w.target(lost), unix.MNT_DETACH))
	w.must(os.RemoveAll(filepath.Join(w.driver.Root, "pods", lost.pod.UID)))
	if w.shrinks() {
		w.want(lost.owned, lost.object)
	} else {
		w.want(owners()[0], objects()[0])
	}
	w.settle("publish another one for one that was lost")
	if !w.failing { // a record that could not be removed stays until the restart
		w.check("before the driver is stopped")
	}

	w.stop()
	w.tamper()
	w.set(objects()[0])
	w.start()
	w.must(w.kubelet.Restart())
	w.settle("after restarts of driver and kubelet")
	w.must(os.RemoveAll(filepath.Join(w.driver.State, "bad")))
	w.converge("after restarts of driver and kubelet")
}

// shrinks reports whether a volume loses files in each round: one with all keys of the object that changes often enough for that.
func (w *world) shrinks() bool {
	return slices.ContainsFunc(w.volumes, func(m mounted) bool { return m.object == objects()[0] && !m.owned.items })
}

// stop has the driver end by SIGTERM, unless it dies on the way.
func (w *world) stop() {
	w.t.Helper()
	if !w.driver.StopOrDie() {
		w.deaths++
	}
}

// tamper does to what a driver left what can happen to it: a mount is gone, as after a reboot; a record is gone; one is not what the driver
// wrote; one was never finished.
func (w *world) tamper() {
	w.t.Helper()
	w.must(unix.Unmount(w.target(w.volumes[0]), unix.MNT_DETACH))
	records := slices.DeleteFunc(w.driver.Records(), func(name string) bool { return !strings.HasSuffix(name, ".json") })
	of := func(m mounted) string {
		for _, name := range records {
			path := filepath.Join(w.driver.State, name)
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), m.pod.UID) {
				return path
			}
		}
		w.t.Fatalf("volume of %s has no record", m.pod.Name)
		return ""
	}
	w.must(os.Remove(of(w.volumes[1])))
	path := of(w.volumes[2])
	b, err := os.ReadFile(path)
	w.must(err)
	w.must(os.WriteFile(path, []byte(strings.ReplaceAll(string(b), w.driver.Root, "/etc")), 0o600))
	w.must(os.WriteFile(path+".tmp", b[:len(b)/2], 0o600))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

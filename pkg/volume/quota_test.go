// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
)

func limited(change func(*Limits)) func(*Config) {
	return func(c *Config) { change(&c.Limits) }
}

// takes returns the memory of a volume that shows all keys of one object: its root, ..data and generation, a file and a
// link for each key, the object itself, and a record that fits into a page.
func takes(c content) (sum int64) {
	page := int64(os.Getpagesize())
	sum = int64(3+2*len(c)+1)*projector.InodeBytes + page
	for key, value := range c {
		sum += (int64(len(value))+page-1)/page*page + int64(len(key)+len(value))
	}
	return sum
}

// nothingTaken fails the test unless no volume has a share.
func (h *harness) nothingTaken() {
	h.t.Helper()
	if n := h.quota.taken(); n != 0 || len(h.quota.accounts) > 0 {
		h.t.Errorf("%d bytes are taken, and there are %d accounts", n, len(h.quota.accounts))
	}
}

// refusedByLimit publishes a volume, and fails the test unless the publish is refused and leaves nothing of the volume.
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
	a, b, c := h.request("a", "secretName", "keys"), h.request("b", "secretName", "keys"),
		h.request("c", "secretName", "keys")
	h.publish(a)
	h.publish(b)
	h.refusedByLimit(c, "the node would have more than 2 volumes (--max-volumes)")
	h.publish(b) // A published volume may be published again.
	h.unpublish(a)
	h.publish(c)
	h.unpublish(b)
	h.unpublish(c)
}

func TestAPublishThatFailsGivesItsShareBack(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.Volumes = 1 }))
	h.secret("keys", content{"k": "v"})
	bad, good := h.request("bad", "secretName", "keys"), h.request("good", "secretName", "keys")
	// The target is no directory, so the publish fails after it has taken its share.
	must(t, os.WriteFile(bad.TargetPath, nil, 0o600))
	isErr(t, h.Publish(t.Context(), bad), ErrPrecondition)
	h.publish(good)
	h.unpublish(good)
	h.nothingTaken()
}

func TestTheVolumesOfTheNodeTakeAsMuchMemoryAsTheyMay(t *testing.T) {
	page := os.Getpagesize()
	two := content{"a": "1", "b": strings.Repeat("x", page+1)}
	most := takes(two) + takes(content{"a": "1", "b": "2"})
	h := newFakeHarness(t, limited(func(l *Limits) { l.NodeBytes = most }))
	h.secret("two", two)
	h.secret("three", content{"a": "1", "b": strings.Repeat("x", 2*page+1)})
	h.secret("one", content{"a": "1"})
	a, b, c := h.request("a", "secretName", "two"), h.request("b", "secretName", "three"),
		h.request("c", "secretName", "one")
	h.publish(a)
	h.refusedByLimit(b, fmt.Sprintf("the node would have more than %d bytes of memory for volumes (--max-node-bytes)",
		most))
	h.publish(c)

	// A refresh that does not fit leaves the old version, and the next version that fits is written.
	h.run()
	h.secret("one", content{"a": "1", "b": "2", "c": "3"})
	h.becomesStale(c, "--max-node-bytes")
	h.shows(c, content{"a": "1"})
	h.secret("one", content{"a": "1", "b": "2"})
	h.publish(c) // Kubelet does this every minute.
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
	others := content{"a": strings.Repeat("x", 2*page)}
	h := newFakeHarness(t, limited(func(l *Limits) { l.NodeBytes = takes(content{"a": "1"}) + takes(others) }),
		func(c *Config) { c.Events = log.record })
	h.secret("keys", content{"a": "1"})
	h.secret("others", others)
	r, other := h.request("v", "secretName", "keys", "uid", "0"), h.request("other", "secretName", "others", "uid", "0")
	h.publish(r)
	h.publish(other)
	h.secret("keys", content{"a": strings.Repeat("x", 4*page)})
	must(t, h.refreshNow(r)) // The next republish repeats the refresh.
	isErr(t, h.get(r.ID).snapshot().stale, ErrExhausted)
	h.secret("others", content{"a": "1"})
	must(t, h.refreshNow(other))
	h.publish(r)
	isErr(t, h.get(r.ID).snapshot().stale, ErrExhausted)
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
	h.refusedByLimit(third, "the node would have more than 2 watched objects (--max-watched-objects)")
	h.publish(again)
	h.unpublish(both)
	h.publish(third)
	h.unpublish(again)
	h.unpublish(third)
	reliability.Shown(t, "F-41", "--max-watched-objects")
}

// After a restart with a lower limit, the volumes may exceed the limit. The published volumes stay, and may shrink.
func TestARestartWithALowerLimitKeepsWhatIsThere(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": "1", "b": "2"})
	a, b := h.request("a", "secretName", "keys"), h.request("b", "secretName", "keys")
	h.publish(a)
	h.publish(b)
	h.configure = append(h.configure, limited(func(l *Limits) {
		l.Volumes, l.Objects, l.NodeBytes = 1, 1, takes(content{"a": "1", "b": "2"})
		l.PodShare, l.NamespaceShare = 50, 50
	}))
	h.restart()
	h.run()
	h.present(a, content{"a": "1", "b": "2"})
	h.present(b, content{"a": "1", "b": "2"})
	h.secret("keys", content{"a": "3", "b": "4"}) // not larger than before
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
	h.refusedByLimit(h.request("c", "secretName", "c"),
		"the node would have more than 1 watched objects (--max-watched-objects)")
	h.refusedByLimit(h.described("both", projectedVolume(secretProjection("a"), secretProjection("c"))),
		"--max-watched-objects")
	for _, r := range []Request{a, b, again, none} {
		h.unpublish(r)
	}
}

func TestQuotaIsNeverExceededByMany(t *testing.T) {
	q := newQuota(Limits{Volumes: 10, NodeBytes: 1 << 20, Objects: 1000, PodShare: 99, NamespaceShare: 100})
	one := recordMemory(newVolume(Request{}))
	q.limits.NodeBytes = 5*one + 55
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			s, err := q.reserve(newVolume(Request{}))
			if err != nil {
				return
			}
			if got := q.taken(); got > q.limits.NodeBytes {
				t.Errorf("%d bytes are taken", got)
			}
			if undo, err := s.resize(10, 5); err == nil {
				undo()
			}
			s.release()
		})
	}
	all.Wait()
	if n := q.taken(); n != 0 || len(q.accounts) > 0 {
		t.Errorf("%d bytes are taken, and there are %d accounts", n, len(q.accounts))
	}
}

// A refresh can run while its volume is unpublished.
func TestAShareThatIsReleasedStaysReleased(t *testing.T) {
	q := newQuota(ample)
	v := newVolume(Request{Pod: Pod{Namespace: namespace, Name: "pod", UID: "uid"}})
	s, err := q.reserve(v)
	must(t, err)
	before := q.taken()
	undo, err := s.resize(10, 5)
	must(t, err)
	undo()
	if got := q.taken(); got != before {
		t.Errorf("%d bytes are taken, before %d", got, before)
	}
	undo, err = s.resize(10, 5)
	must(t, err)
	s.release()
	if _, err := s.resize(20, 5); !errors.Is(err, errReleased) {
		t.Errorf("a released share can be resized: %v", err)
	}
	undo()
	s.release()
	if n := q.taken(); n != 0 || len(q.accounts) > 0 {
		t.Errorf("%d bytes are taken, and there are %d accounts", n, len(q.accounts))
	}
}

// podWithVolumes returns a pod in a namespace with a number of volumes, and the requests for them. Each volume has all
// of the sources.
func (h *harness) podWithVolumes(
	namespace, name string, volumes int, sources func(volume int) []corev1.VolumeProjection,
) (requests []Request) {
	h.t.Helper()
	var pod *corev1.Pod
	for i := range volumes {
		volume, described := fmt.Sprintf("%s-%d", name, i), fmt.Sprint("described-", i)
		r := h.request(volume, "volume", described, "uid", "0")
		r.Pod = Pod{Namespace: namespace, Name: name, UID: "uid-" + name}
		r.TargetPath = h.target(r.Pod.UID, volume)
		must(h.t, os.MkdirAll(filepath.Dir(r.TargetPath), 0o750))
		requests = append(requests, r)
		one := podOf(r)
		if pod == nil {
			pod = one
		} else {
			pod.Spec.Volumes = append(pod.Spec.Volumes, one.Spec.Volumes...)
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes,
			corev1.Volume{Name: described, VolumeSource: projectedVolume(sources(i)...)})
	}
	h.setPod(pod)
	return requests
}

// optionalSecrets returns projections of optional Secrets that do not exist.
func optionalSecrets(prefix string, n int) (all []corev1.VolumeProjection) {
	for i := range n {
		p := secretProjection(fmt.Sprintf("%s-%d", prefix, i))
		p.Secret.Optional = ptr.To(true)
		all = append(all, p)
	}
	return all
}

func TestOnePodCanNotTakeAllWatches(t *testing.T) {
	const volumes, objects = 63, 64
	h := newFakeHarness(t, limited(func(l *Limits) { l.Objects, l.PodShare, l.NamespaceShare = 4000, 10, 50 }))
	greedy := h.podWithVolumes(namespace, "greedy", volumes, func(i int) []corev1.VolumeProjection {
		return optionalSecrets(fmt.Sprint("missing-", i), objects)
	})
	var published []Request
	for _, r := range greedy {
		err := h.Publish(t.Context(), r)
		if err == nil {
			published = append(published, r)
			continue
		}
		isErr(t, err, ErrExhausted,
			`pod "ns/greedy" would have more than 400 watched objects (--pod-share: 10 % of --max-watched-objects=4000)`)
	}
	const most = 400 / objects
	if n := len(published); n != most {
		t.Errorf("%d volumes are published, want %d", n, most)
	}
	if n := h.fake.called("Subscribe"); n != most*objects {
		t.Errorf("%d objects were asked for, want %d: none for a volume that is refused", n, most*objects)
	}
	other := h.podWithVolumes(namespace, "other", 1, func(int) []corev1.VolumeProjection {
		return optionalSecrets("else", objects)
	})
	h.publish(other[0])
	for _, r := range append(published, other...) {
		h.unpublish(r)
	}
	h.nothingTaken()
	reliability.Shown(t, "F-46", fmt.Sprintf("a pod with %d volumes of %d missing objects watches %d of 4000 objects",
		volumes, objects, most*objects))
}

func TestEachShareOfAPodIsRefusedByName(t *testing.T) {
	for name, test := range map[string]struct {
		limits func(*Limits)
		says   string
	}{
		"volumes": {func(l *Limits) { l.Volumes, l.PodShare = 20, 10 },
			`pod "ns/p" would have more than 2 volumes (--pod-share: 10 % of --max-volumes=20)`},
		"bytes": {func(l *Limits) { l.NodeBytes, l.PodShare = 100<<10, 40 },
			`pod "ns/p" would have more than 40960 bytes of memory for volumes (--pod-share: 40 % of --max-node-bytes=102400)`},
		"objects": {func(l *Limits) { l.Objects, l.PodShare = 20, 10 },
			`pod "ns/p" would have more than 2 watched objects (--pod-share: 10 % of --max-watched-objects=20)`},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHarness(t, limited(test.limits))
			each := func(i int) []corev1.VolumeProjection {
				return []corev1.VolumeProjection{secretProjection(fmt.Sprint("s", i))}
			}
			for i := range 3 {
				h.secret(fmt.Sprint("s", i), content{"k": strings.Repeat("x", 1000)})
			}
			requests, other := h.podWithVolumes(namespace, "p", 3, each), h.podWithVolumes(namespace, "q", 2, each)
			h.publish(requests[0])
			h.publish(requests[1])
			h.refusedByLimit(requests[2], test.says)
			h.publish(other[0])
			h.unpublish(requests[0])
			h.publish(requests[2]) // The freed share can be used again.
			for _, r := range []Request{requests[1], requests[2], other[0]} {
				h.unpublish(r)
			}
			h.nothingTaken()
		})
	}
	reliability.Shown(t, "F-46", "volumes, bytes and objects of one pod")
}

func TestOneNamespaceCanNotTakeTheNode(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.Volumes, l.NamespaceShare = 4, 50 }))
	one := func(int) []corev1.VolumeProjection { return optionalSecrets("missing", 1) }
	var all []Request
	for i := range 2 {
		all = append(all, h.podWithVolumes(namespace, fmt.Sprint("p", i), 1, one)...)
		h.publish(all[i])
	}
	h.refusedByLimit(h.podWithVolumes(namespace, "third", 1, one)[0],
		`namespace "ns" would have more than 2 volumes (--namespace-share: 50 % of --max-volumes=4)`)
	other := h.podWithVolumes("other", "p", 1, one)
	h.publish(other[0])
	for _, r := range append(all, other...) {
		h.unpublish(r)
	}
	h.nothingTaken()
	reliability.Shown(t, "F-46", "volumes of one namespace")
}

func TestAnObjectCountsWholeEvenIfOneKeyOfItIsShown(t *testing.T) {
	h := newFakeHarness(t)
	c := content{"shown": "1", "rest": strings.Repeat("x", 1<<20)}
	h.secret("big", c)
	shown := content{"shown": "1"}
	held := int64(len("rest") + len(c["rest"]))
	// Two projections of one object in one volume count once.
	twice := secretProjection("big", "shown", "shown")
	r := h.described("v", projectedVolume(twice, twice))
	fixed := h.described("fixed", secretVolume("big", "shown", "shown"), "refresh", "off")
	h.publish(r)
	if got, want := h.quota.taken(), takes(shown)+held; got != want {
		t.Errorf("%d bytes are taken, want %d", got, want)
	}
	h.publish(fixed) // A volume that does not follow its object does not hold the object.
	if n := len(h.quota.accounts[owner{}].objects); n != 1 {
		t.Errorf("%d objects count as watched, want 1", n)
	}
	fixedBytes := takes(shown) - int64(len("shown")+1)
	if got, want := h.quota.taken(), takes(shown)+held+fixedBytes; got != want {
		t.Errorf("%d bytes are taken, want %d", got, want)
	}
	h.unpublish(fixed)

	// After a restart the object counts as soon as it is read.
	h.restart()
	must(t, h.refreshNow(r))
	if got, want := h.quota.taken(), takes(shown)+held; got != want {
		t.Errorf("after a restart %d bytes are taken, want %d", got, want)
	}
	h.unpublish(r)
	h.nothingTaken()

	h.configure = append(h.configure, limited(func(l *Limits) { l.NodeBytes = 1 << 20 }))
	h.restart()
	h.refusedByLimit(r, "--max-node-bytes")
	reliability.Shown(t, "F-41", "an object of 1 MiB of which one byte is shown, more than --max-node-bytes")
}

func TestTheContentOfARequestCountsAsLongAsItIsHeld(t *testing.T) {
	h := newFakeHarness(t)
	c := content{"k": "from the request"}
	watch, off := h.request("watch"), h.request("off", "refresh", "off")
	h.publish(watch)
	if got, want := h.quota.taken(), takes(c); got != want {
		t.Errorf("%d bytes are taken, want %d", got, want)
	}
	h.publish(off)
	h.publish(off)
	if got, want := h.quota.taken(), 2*takes(c)-int64(len("k")+len(c["k"])); got != want {
		t.Errorf("%d bytes are taken, want %d", got, want)
	}
	if h.get(off.ID).requested != nil {
		t.Error("the volume that is not refreshed holds the content of its request")
	}
	h.unpublish(watch)
	h.unpublish(off)
	h.nothingTaken()
}

// An object whose growing key is not shown makes its volume stale. The driver does not hold the object, because the
// limits would not count its content.
func TestAnObjectThatGrowsBeyondTheShareOfItsPod(t *testing.T) {
	h := newFakeHarness(t, limited(func(l *Limits) { l.NodeBytes, l.PodShare = 1<<20, 10 }))
	h.secret("keys", content{"shown": "1"})
	r := h.described("v", secretVolume("keys", "shown", "shown"))
	h.publish(r)
	h.secret("keys", content{"shown": "2", "rest": strings.Repeat("x", 1<<20)})
	must(t, h.refreshNow(r)) // The next republish repeats the refresh.
	isErr(t, h.get(r.ID).snapshot().stale, ErrExhausted, `pod "ns/pod-v"`, "--pod-share: 10 % of --max-node-bytes=1048576")
	if got := h.subscriptions(); len(got) != 0 {
		t.Errorf("the driver still holds %q", got)
	}
	h.shows(r, content{"shown": "1"})
	if got, want := h.quota.taken(), takes(content{"shown": "1"}); got != want {
		t.Errorf("%d bytes are taken, want %d", got, want)
	}
	h.secret("keys", content{"shown": "3"})
	h.publish(r)
	h.present(r, content{"shown": "3"})
	h.unpublish(r)
	h.nothingTaken()
}

func TestARecordCountsWithItsEscapes(t *testing.T) {
	h := newFakeHarness(t)
	var items []string
	path := strings.Repeat("\x01", 200) // Each byte takes six bytes in JSON.
	for i := range 50 {
		items = append(items, "missing", fmt.Sprint(path, i))
	}
	described := secretVolume("keys", items...)
	described.Secret.Optional = ptr.To(true)
	r := h.described("v", described)
	h.publish(r)
	st, err := os.Stat(h.recordFiles()[0])
	must(t, err)
	if st.Size() < 50*6*200 {
		t.Fatalf("the record has %d bytes: this test wants escapes", st.Size())
	}
	const empty = 3 * projector.InodeBytes // root, ..data and the generation
	if got := h.quota.taken() - empty; got < st.Size() || got > st.Size()+2*projector.FileMemory(1) {
		t.Errorf("the record counts %d bytes, and has %d", got, st.Size())
	}
	before := h.quota.taken()
	h.restart()
	if got := h.quota.taken(); got != before {
		t.Errorf("after a restart %d bytes are taken, before %d", got, before)
	}
	h.unpublish(r)
	h.nothingTaken()

	h.configure = append(h.configure, limited(func(l *Limits) { l.NodeBytes = st.Size() }))
	h.restart()
	asked := h.fake.called("Subscribe")
	h.refusedByLimit(r, "--max-node-bytes")
	if n := h.fake.called("Subscribe"); n != asked {
		t.Error("an object was asked for")
	}
	reliability.Shown(t, "F-41", "a record of 60 KB")
}

func TestPortion(t *testing.T) {
	for _, test := range []struct {
		limit   int64
		percent int
		want    int64
	}{
		{4000, 10, 400}, {4000, 100, 4000}, {199, 50, 99}, {1, 1, 1}, {9, 10, 1},
		{math.MaxInt64, 100, math.MaxInt64}, {math.MaxInt64, 50, math.MaxInt64 / 2},
	} {
		if got := portion(test.limit, test.percent); got != test.want {
			t.Errorf("%d %% of %d: got %d, want %d", test.percent, test.limit, got, test.want)
		}
	}
}

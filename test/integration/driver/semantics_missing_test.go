// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestAMissingObjectKeepsThePodWaitingUntilItAppears(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		p, v := pod("waiting"), ssh(k.attribute, name)
		waits(t, d, p, v, codes.NotFound, k.name+` "default/`+name+`"`, "not found")
		if mounts := testkit.MountsBelow(t, d.Target(p, v.Name)); len(mounts) != 0 {
			t.Errorf("a volume that could not be published is mounted: %q", mounts)
		}
		k.set(t, name, files{"k": "1"})
		// Kubelet retries.
		see(t, d, p, v).becomes(files{"k": "1"})
	})
}

func TestAMissingOptionalObjectIsAnEmptyVolumeThatComesAndGoes(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		s := see(t, d, pod("optional"), ssh(k.attribute, name, "optional", "true"))
		s.becomes(files{})
		for _, value := range []string{"first", "second"} {
			k.set(t, name, files{"k": value})
			s.becomes(files{"k": value})
			k.delete(t, name)
			s.becomes(files{})
		}
		if n := d.Metric("fsuser_stale_volumes"); n != 0 {
			t.Errorf("%v volumes count as not current; the absence of an optional object is no failure", n)
		}
	})
}

func TestAMissingKeyKeepsThePodWaitingUntilItAppears(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"other": "1"})
		p, v := shared.describe(t, k.volume(name, false, items("other", "other", "k", "path")...))
		waits(t, d, p, v, codes.FailedPrecondition, k.name+` "default/`+name+`"`, `"k"`)
		k.set(t, name, files{"other": "1", "k": "2"})
		testkit.Eventually(t, soon, "the publish to succeed", func() bool {
			_, err := d.Publish(deadline(t), p, v)
			return err == nil
		})
		see(t, d, p, v).becomes(files{"other": "1", "path": "2"})
	})
}

func TestAMissingOptionalKeyIsLeftOutAndComesAndGoes(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"other": "1"})
		p, v := shared.describe(t, k.volume(name, true, items("other", "other", "k", "deep/path")...))
		s := see(t, d, p, v)
		s.becomes(files{"other": "1"})
		k.set(t, name, files{"other": "1", "k": "2"})
		s.becomes(files{"other": "1", "deep/path": "2"})
		k.set(t, name, files{"other": "1"})
		s.becomes(files{"other": "1"})
	})
}

func TestADeletedObjectLeavesItsFilesUntilItIsMadeAnew(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"k": "old", "l": "old"})
		s := see(t, d, pod("deleted"), ssh(k.attribute, name))
		k.delete(t, name)
		s.stale()
		s.stays(files{"k": "old", "l": "old"})
		// Kubelet republishes all the time. An error would delay a restarted container.
		if _, err := d.Publish(deadline(t), s.pod, s.volume); err != nil {
			t.Errorf("a republish after the deletion: %v", err)
		}
		s.stays(files{"k": "old", "l": "old"})
		k.set(t, name, files{"k": "new"})
		s.becomes(files{"k": "new"})
		s.current()
	})
}

func TestAKeyThatItemsNameAndThatGoesLeavesTheFiles(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"a": "1", "b": "1"})
		p, v := shared.describe(t, k.volume(name, false, items("a", "a", "b", "b")...))
		s := see(t, d, p, v)
		k.set(t, name, files{"a": "2"})
		s.stale()
		s.stays(files{"a": "1", "b": "1"})
		k.set(t, name, files{"a": "3", "b": "3"})
		s.becomes(files{"a": "3", "b": "3"})
		s.current()
	})
}

func TestKeysComeAndGo(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"a": "1", "b": "1"})
		s := see(t, d, pod("keys"), ssh(k.attribute, name))
		s.becomes(files{"a": "1", "b": "1"})
		k.set(t, name, files{"b": "2", "c": "2"})
		s.becomes(files{"b": "2", "c": "2"})
		k.set(t, name, files{"a": "3"})
		s.becomes(files{"a": "3"})
	})
}

// The data of an immutable object never changes, so the driver does not watch it. The driver notices that the object
// was deleted and created again when the next pod uses it. Kubelet notices it only after the last pod with the object
// has left the node.
func TestAnImmutableObjectThatIsMadeAnewIsSeenByTheNextPod(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setImmutable(t, name, "old")
	first := see(t, d, pod("first"), ssh("secretName", name))
	first.becomes(files{"k": "old"})
	deleteSecret(t, name)
	setImmutable(t, name, "new")
	first.stays(files{"k": "old"})
	see(t, d, pod("second"), ssh("secretName", name)).becomes(files{"k": "new"})
	first.becomes(files{"k": "new"})
	// The pods with the object keep it, and the next pod waits.
	deleteSecret(t, name)
	waits(t, d, pod("third"), ssh("secretName", name), codes.NotFound, name)
	first.stays(files{"k": "new"})
}

func TestAnObjectThatBecomesImmutableKeepsItsFiles(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	s := see(t, d, pod("immutable"), ssh("secretName", name))
	setImmutable(t, name, "2")
	s.becomes(files{"k": "2"})
	s.current()
}

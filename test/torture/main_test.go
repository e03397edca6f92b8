// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"os"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"reader": readerMain})
	testkit.RunInMountNamespace(m)
}

func TestTorture(t *testing.T) {
	c := startCluster(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"the driver that ships has no failpoints", noFailpoints},
		{"calls come out of order", outOfOrder},
		{"publish and unpublish race", publishAgainstUnpublish},
		{"the caller gives up at every step", givenUp},
		{"all volumes arrive at once", allAtOnce},
		{"calls and refreshes panic", panics},
		{"the disk below the records is slow", slowRecords},
		{"an object is removed before it is watched", removedBeforeTheWatch},
		{"two instances", twoInstances},
		{"records of other versions", otherVersions},
		{"a long life with a directory of manifests", soakManifests},
		{"a long life with the API server", soakAPI},
		{"the driver is killed while it changes plain files", killsInPlainFiles},
		{"the driver is killed at every step, and at any time", kills},
		{"the driver is killed with --access=node", func(t *testing.T, c *cluster) { kills(t, c.asNode(t)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			// An idle client has closed its connection. It opens the next one before descriptors are counted.
			if _, err := c.client.Discovery().ServerVersion(); err != nil {
				t.Fatal(err)
			}
			testkit.NothingLeft(t)
			test.run(t, c.behindProxy(t))
		})
	}
}

// long reports whether this is "make torture" and not "make test".
func long() bool { return os.Getenv("FSUSER_TORTURE") != "" }

// rounds returns the number of rounds of a test.
func rounds(few, all int) int {
	if long() {
		return all
	}
	return few
}

// buildDriver builds a driver with failpoints, without the race detector, which makes each of the many starts ten times
// slower.
func buildDriver(t testing.TB) string {
	t.Helper()
	if long() {
		return testkit.BuildDriver(t, "failpoints")
	}
	return testkit.BuildDriverWithoutRace(t, "failpoints")
}

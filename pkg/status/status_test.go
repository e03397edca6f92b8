// SPDX-License-Identifier: Apache-2.0

package status

import (
	"strings"
	"testing"
	"time"
)

func TestTables(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := now.Add(-90 * time.Second)
	volumes := []Volume{
		{PodNamespace: "ns", PodName: "a", Volume: "v", Object: "Secret/s", UID: 1, GID: 2, Mode: "0400", ResourceVersion: "7", Refresh: "watch", Refreshed: &before},
		{PodNamespace: "ns", PodName: "b", Volume: "v", Object: "Secret/s,Pod", Mode: "0644", Refresh: "off"},
		{PodNamespace: "ns", PodName: "c", Volume: "v", Object: "ConfigMap/c", Mode: "0444", Refresh: "watch", Stale: "forbidden", StaleSince: &before},
	}
	var one, all strings.Builder
	if err := Table(&one, volumes, now); err != nil {
		t.Fatal(err)
	}
	want := `POD   VOLUME  OBJECT        OWNER  MODE  VERSION  REFRESHED  STATE
ns/a  v       Secret/s      1:2    0400  7        1m30s      current
ns/b  v       Secret/s,Pod  0:0    0644  -        -          fixed
ns/c  v       ConfigMap/c   0:0    0444  -        -          stale for 1m30s: forbidden
`
	if one.String() != want {
		t.Errorf("the table is\n%swant\n%s", one.String(), want)
	}
	if err := NodesTable(&all, []NodeVolume{{"node-1", volumes[0]}}, now); err != nil {
		t.Fatal(err)
	}
	want = `NODE    POD   VOLUME  OBJECT    OWNER  MODE  VERSION  REFRESHED  STATE
node-1  ns/a  v       Secret/s  1:2    0400  7        1m30s      current
`
	if all.String() != want {
		t.Errorf("the table of nodes is\n%swant\n%s", all.String(), want)
	}
}

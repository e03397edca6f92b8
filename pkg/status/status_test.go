// SPDX-License-Identifier: Apache-2.0

package status

import (
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := now.Add(-90 * time.Second)
	volumes := []Volume{
		{PodNamespace: "ns", PodName: "a", Volume: "v", Object: "Secret/s", UID: 1, GID: 2, Mode: "0400",
			ResourceVersion: "7", Refresh: "watch", Refreshed: &before},
		{PodNamespace: "ns", PodName: "b", Volume: "v", Object: "Secret/s,Pod", Mode: "0644", Refresh: "off"},
		{PodNamespace: "ns", PodName: "c", Volume: "v", Object: "ConfigMap/c", Mode: "0444", Refresh: "watch",
			Stale: "forbidden", StaleSince: &before},
	}
	nodes := []Node{
		{Node: "node-1", Access: &Access{Ready: true, Since: before}, Volumes: volumes[:2]},
		{Node: "n", Access: &Access{Reason: "forbidden; do this", Since: before}, Volumes: volumes[2:]},
		{Node: "node-3", Volumes: nil},
	}
	var got strings.Builder
	if err := Table(&got, nodes, now); err != nil {
		t.Fatal(err)
	}
	want := `node n: the driver's access has not worked for 1m30s: forbidden; do this
NODE    POD   VOLUME  OBJECT        OWNER  MODE  VERSION  REFRESHED  STATE
node-1  ns/a  v       Secret/s      1:2    0400  7        1m30s      current
node-1  ns/b  v       Secret/s,Pod  0:0    0644  -        -          fixed
n       ns/c  v       ConfigMap/c   0:0    0444  -        -          stale for 1m30s: forbidden
`
	if got.String() != want {
		t.Errorf("the table is\n%swant\n%s", got.String(), want)
	}
}

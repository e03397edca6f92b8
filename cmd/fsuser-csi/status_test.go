// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// statuses are volumes that differ in all that the command shows, as they are at now.
func statuses(now time.Time) []volume.Status {
	refreshed, since := now.Add(-90*time.Second), now.Add(-time.Hour)
	return []volume.Status{
		{
			PodNamespace: "shop", PodName: "web-0", PodUID: "u1", Volume: "ssh", Object: `Secret "shop/keys"`, UID: 1000, GID: 2000,
			Mode: "0400", ResourceVersion: "7", Refresh: "watch", Bytes: 12, Refreshed: &refreshed,
		},
		{
			PodNamespace: "shop", PodName: "web-1", PodUID: "u2", Volume: "ssh", Object: `Secret "shop/keys"`, Mode: "0400,0644",
			Refresh: "watch", Stale: `Secret "shop/keys": forbidden`, StaleSince: &since,
		},
		{PodNamespace: "shop", PodName: "web-2", PodUID: "u3", Volume: "conf", Object: `ConfigMap "shop/c"`, Mode: "0444", Refresh: "off"},
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	var out strings.Builder
	if err := printStatus(&out, statuses(now), now); err != nil {
		t.Fatal(err)
	}
	const want = `POD         VOLUME  OBJECT              OWNER      MODE       VERSION  REFRESHED  STATE
shop/web-0  ssh     Secret "shop/keys"  1000:2000  0400       7        1m30s      current
shop/web-1  ssh     Secret "shop/keys"  0:0        0400,0644  -        -          stale for 1h0m0s: Secret "shop/keys": forbidden
shop/web-2  conf    ConfigMap "shop/c"  0:0        0444       -        -          fixed
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestStatusOnTheSocket(t *testing.T) {
	testkit.NothingLeft(t)
	dir := t.TempDir()
	want := statuses(time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC))
	stop, err := serveStatus(dir, func() []volume.Status { return want })
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, statusSocket)
	got, err := askStatus(t.Context(), socket)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := askStatus(cancelled, socket); err == nil {
		t.Error("a call that was cancelled has an answer")
	}
	stop()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := askStatus(t.Context(), socket); err == nil {
		t.Error("a driver that has stopped answers")
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// statuses returns volumes that differ in all columns of the output, with times relative to now.
func statuses(now time.Time) []status.Volume {
	refreshed, since := now.Add(-90*time.Second), now.Add(-time.Hour)
	return []status.Volume{
		{
			PodNamespace: "shop", PodName: "web-0", PodUID: "u1", Volume: "ssh", Object: `Secret "shop/keys"`, UID: 1000,
			GID:  2000,
			Mode: "0400", ResourceVersion: "7", Refresh: "watch", Bytes: 12, Refreshed: &refreshed,
		},
		{
			PodNamespace: "shop", PodName: "web-1", PodUID: "u2", Volume: "ssh", Object: `Secret "shop/keys"`, Mode: "0400,0644",
			Refresh: "watch", Stale: `Secret "shop/keys": forbidden`, StaleSince: &since,
		},
		{PodNamespace: "shop", PodName: "web-2", PodUID: "u3", Volume: "conf", Object: `ConfigMap "shop/c"`, Mode: "0444",
			Refresh: "off"},
	}
}

func TestStatusOnTheSocket(t *testing.T) {
	testkit.NothingLeft(t)
	dir := t.TempDir()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	want := status.Node{Node: "node-1", Access: &status.Access{Reason: "forbidden", Since: now}, Volumes: statuses(now)}
	stop, err := serveStatus(dir, func() status.Node { return want })
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

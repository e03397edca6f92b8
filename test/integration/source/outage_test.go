// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

func backgroundContext() context.Context { return context.Background() }

// TestOutage stops the API server and starts it again.
func TestOutage(t *testing.T) {
	ctx := testContext(t)
	admin := newClient(t)
	for _, name := range []string{"outage", "outage-deleted"} {
		admin.create(t, secret(name, "one"))
		t.Cleanup(func() { cleanUp(admin, secret(name, "")) })
	}
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	ref, deleted, fresh := secretRef("outage"), secretRef("outage-deleted"), secretRef("outage-new")
	watched(t, api, ref)
	watched(t, api, deleted)
	other := newAPI(t, controlPlane.AdminConfig())
	for n := range 50 {
		watched(t, other, secretRef(fmt.Sprintf("outage-%d", n)))
	}
	asked := len(requests.all())

	if err := controlPlane.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := controlPlane.StartAPIServer(context.Background()); err != nil {
			t.Errorf("start the API server for the tests that follow: %v", err)
		}
	})
	begin := time.Now()
	if got := value(api, ref); got != "one" {
		t.Errorf("right after the API server went: %q", got)
	}
	start := time.Now()
	watched(t, api, fresh)
	if _, err := api.Get(fresh); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("Get of a new object: error %v, want %v", err, source.ErrUnavailable)
	} else {
		t.Logf("a new object, after %v: %v", time.Since(start), err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	testkit.Eventually(t, 20*time.Second, "some attempts", func() bool { return len(requests.all()) >= asked+4 })
	if got := value(api, ref); got != "one" {
		t.Errorf("after %v without API server: %q", time.Since(begin), got)
	}
	if got, most := len(requests.all())-asked, 6+int(time.Since(begin)/time.Second); got > most {
		t.Errorf("%d requests in %v, want at most %d", got, time.Since(begin), most)
	}
	closeSoon(t, other)

	if err := controlPlane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	admin.update(t, secret("outage", "two"))
	admin.delete(t, secret("outage-deleted", ""))
	admin.create(t, secret("outage-new", "new"))
	t.Cleanup(func() { cleanUp(admin, secret("outage-new", "")) })
	waitValue(t, api, ref, time.Minute, "two")
	waitValue(t, api, fresh, time.Minute, "new")
	testkit.Eventually(t, time.Minute, "the deletion to be seen", func() bool {
		_, err := api.Get(deleted)
		return errors.Is(err, source.ErrNotFound)
	})
	t.Logf("all seen %v after the API server was back; it was away for %v", time.Since(start), start.Sub(begin))
}

// TestOutageClose closes the source while the API server is stopped and the watchers pause.
func TestOutageClose(t *testing.T) {
	ctx := testContext(t)
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	if err := controlPlane.StopAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := controlPlane.StartAPIServer(context.Background()); err != nil {
			t.Errorf("start the API server for the tests that follow: %v", err)
		}
	})
	for n := range 50 {
		api.Subscribe(secretRef(fmt.Sprintf("away-%d", n)), subscriber, false, func() {})
	}
	for n := range 50 {
		waitKnown(t, api, secretRef(fmt.Sprintf("away-%d", n)))
	}
	testkit.Eventually(t, 20*time.Second, "another attempt", func() bool { return len(requests.all()) >= 3 })
	closeSoon(t, api)
	noGoroutinesLeft(t)
}

// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
)

func TestNewChecksItsConfig(t *testing.T) {
	records, err := record.Open(t.TempDir())
	must(t, err)
	for _, test := range []struct {
		name  string
		spoil func(*Config)
		ok    bool
	}{
		{"all is there", func(*Config) {}, true},
		{"no source", func(c *Config) { c.Source = nil }, false},
		{"no records", func(c *Config) { c.Records = nil }, false},
		{"no check of targets", func(c *Config) { c.CheckTarget = nil }, false},
		{"no metrics", func(c *Config) { c.Metrics = nil }, false},
		{"no bytes", func(c *Config) { c.Limits.Bytes = 0 }, false},
		{"no files", func(c *Config) { c.Limits.Files = 0 }, false},
		{"no workers", func(c *Config) { c.Workers = 0 }, false},
		{"no pause between collections", func(c *Config) { c.CollectEvery = 0 }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Config{
				Source: newFakeSource(), Records: records, Limits: ample, Workers: 1, CollectEvery: time.Hour,
				CheckTarget: func(_, _, _ string) error { return nil }, Metrics: prometheus.NewRegistry(),
			}
			test.spoil(&c)
			m, err := New(c)
			if (err == nil) != test.ok {
				t.Errorf("got the error %v", err)
			}
			if err == nil {
				m.queue.ShutDown()
			}
		})
	}
}

func TestRunEndsWithAllThatItStarted(t *testing.T) {
	h := newFakeHarness(t, func(c *Config) { c.CollectEvery = time.Millisecond; c.Workers = 7 })
	var requests []Request
	for _, name := range []string{"a", "b", "c"} {
		h.secret(name, content{"k": "1"})
		r := h.request(name, "secretName", name)
		h.publish(r)
		requests = append(requests, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	testkit.Eventually(t, patience, "the goroutine of refreshes, two of checks, and Run", func() bool {
		return strings.Count(stacks(), "created by sync.(*WaitGroup).Go in goroutine") >= 3
	})
	// One volume fails again and again.
	fill(t, requests[1])
	h.secret("a", content{"k": "2"})
	h.secret("b", content{"k": "2"})
	testkit.Eventually(t, patience, "a failure", func() bool { return h.counts()["refresh error"] > 0 })
	cancel()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatalf("Run did not return:\n%s", stacks())
	}
	testkit.Eventually(t, patience, "all goroutines to end", func() bool {
		s := stacks()
		return !strings.Contains(s, "volume.(*Manager)") && !strings.Contains(s, "workqueue.")
	})

	// Calls that come after the end of Run still work, and no volume is lost.
	h.publish(requests[2])
	h.present(requests[2], content{"k": "1"})
	h.unpublish(requests[2])
	h.isThere(requests[0])
}

func TestRunWaitsForAWriteThatIsUnderWay(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "1"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	busy, finish := make(chan struct{}), make(chan struct{})
	h.fake.setAfterGet(func() { h.fake.setAfterGet(nil); close(busy); <-finish })
	h.secret("keys", content{"k": "2"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	<-busy
	cancel()
	testkit.Eventually(t, patience, "Run to wait for the busy worker", func() bool {
		return h.queue.ShuttingDown() && strings.Contains(stacks(), "(*Manager).Run.func4")
	})
	if isClosed(ended) {
		t.Error("Run returned while a worker was writing")
	}
	close(finish)
	<-ended
	h.shows(r, content{"k": "2"})
}

// stacks returns the stacks of all goroutines.
func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

func TestMetricsCountOperationsByOutcome(t *testing.T) {
	h := newFakeHarness(t)
	count := func(want map[string]int) {
		t.Helper()
		if got := h.counts(); !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	count(map[string]int{})
	r := h.request("v", "secretName", "keys")
	if err := h.Publish(t.Context(), r); err == nil {
		t.Fatal("no error")
	}
	count(map[string]int{"publish error": 1})
	h.secret("keys", content{"k": "1"})
	h.publish(r)
	count(map[string]int{"publish error": 1, "publish ok": 1})
	h.publish(r)
	count(map[string]int{"publish error": 1, "publish ok": 1, "republish ok": 1})
	h.secret("keys", content{"k": "2"})
	must(t, h.refreshNow(r))
	must(t, h.refreshNow(r)) // A refresh of a current volume counts nothing.
	count(map[string]int{"publish error": 1, "publish ok": 1, "republish ok": 1, "refresh ok": 1})
	h.secret("keys", content{"../k": "2"})
	h.publish(r)
	count(map[string]int{"publish error": 1, "publish ok": 1, "republish ok": 2, "refresh ok": 1, "refresh error": 1})
	other := copied(r)
	other.Spec.Sources[0].Mode = 0o444
	isErr(t, h.Publish(t.Context(), other), ErrConflict)
	isErr(t, h.Unpublish(t.Context(), r.ID, r.TargetPath+"x"), ErrPrecondition)
	h.unpublish(r)
	h.unpublish(r)
	count(map[string]int{"publish error": 1, "publish ok": 1, "republish ok": 2, "republish error": 1, "refresh ok": 1,
		"refresh error":   1,
		"unpublish error": 1, "unpublish ok": 2})
}

func TestMetricsNameNobody(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "v"})
	for _, name := range []string{"one", "two"} {
		h.publish(h.request(name, "secretName", "keys"))
	}
	families, err := h.registry.Gather()
	must(t, err)
	allowed := map[string][]string{
		"operation": {"publish", "republish", "refresh", "unpublish"},
		"outcome":   {"ok", "error"},
		"reason":    {"not_found", "forbidden", "unavailable", "precondition", "limit", "stalled", "other"},
	}
	gauges := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
				if !slices.Contains(allowed[l.GetName()], l.GetValue()) {
					t.Errorf("%s has the label %s=%q", f.GetName(), l.GetName(), l.GetValue())
				}
			}
			if m.GetGauge() != nil {
				gauges[name] = m.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{
		"fsuser_volumes": 2, "fsuser_watched_objects": 1, "fsuser_stale_volumes": 0, "fsuser_oldest_stale_volume_seconds": 0,
		"fsuser_volume_bytes":           2,
		"fsuser_oldest_refresh_seconds": 0,
		"fsuser_volume_memory_bytes":    float64(2 * takes(content{"k": "v"})),
	}
	if !maps.Equal(gauges, want) {
		t.Errorf("got %v, want %v", gauges, want)
	}
}

func TestUsage(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": strings.Repeat("x", 10000), "b": "y"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	u, err := h.Usage(t.Context(), r.ID, r.TargetPath)
	must(t, err)
	// Files take whole pages; the inodes are the root, ..data, a generation, and a file and a link for each key.
	page := uint64(os.Getpagesize())
	if want := (10000+page-1)/page*page + page; u.BytesUsed != want || u.InodesUsed != 7 {
		t.Errorf("got %+v, want %d bytes and 7 inodes in use", u, want)
	}
	if u.BytesUsed+u.BytesFree != u.BytesTotal || u.InodesUsed+u.InodesFree != u.InodesTotal {
		t.Errorf("the sums are wrong: %+v", u)
	}

	_, err = h.Usage(t.Context(), "csi-unknown", r.TargetPath)
	isErr(t, err, ErrUnknown)
	_, err = h.Usage(t.Context(), r.ID, filepath.Dir(r.TargetPath))
	isErr(t, err, ErrUnknown)
	must(t, unix.Mount("somebody", r.TargetPath, "tmpfs", 0, "size=1m"))
	_, err = h.Usage(t.Context(), r.ID, r.TargetPath)
	isErr(t, err, ErrUnknown)
	must(t, unix.Unmount(r.TargetPath, 0))
	must(t, unix.Unmount(r.TargetPath, 0))
	_, err = h.Usage(t.Context(), r.ID, r.TargetPath) // The path now leads to the disk.
	isErr(t, err, ErrUnknown)
	must(t, os.Remove(r.TargetPath))
	_, err = h.Usage(t.Context(), r.ID, r.TargetPath)
	isErr(t, err, ErrUnknown)
	h.unpublish(r)
	_, err = h.Usage(t.Context(), r.ID, r.TargetPath)
	isErr(t, err, ErrUnknown)
}

func TestReadyWhileRecordsCanBeWritten(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.CollectEvery = time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	says := func(what string, said ...string) {
		t.Helper()
		testkit.Eventually(t, patience, what, func() bool {
			err := h.Ready()
			return (err == nil) == (len(said) == 0) &&
				(err == nil || !slices.ContainsFunc(said, func(s string) bool { return !strings.Contains(err.Error(), s) }))
		})
	}
	says("ready")
	must(t, unix.Mount("volume-test", h.state, "tmpfs", unix.MS_RDONLY, ""))
	defer unix.Unmount(h.state, unix.MNT_DETACH)
	says("not ready", "no volume can be published", "--state-dir", h.state, "read-only")
	must(t, unix.Unmount(h.state, unix.MNT_DETACH))
	says("ready again")
	cancel()
	<-ended
	// Compact removes duplicates: klog writes an error once more for each lower severity.
	if lines := slices.Compact(strings.Split(strings.TrimSpace(logged.Text()), "\n")); len(lines) != 2 ||
		!strings.Contains(lines[0], "Not ready") {
		t.Errorf("the log has not two lines:\n%s", strings.Join(lines, "\n"))
	}
}

// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// soaked is the number of volumes. Each has a Secret of its own.
const soaked = 200

// soakManifests reads its objects from a file, which a million updates do not wear out.
func soakManifests(t *testing.T, c *cluster) {
	manifests := t.TempDir()
	longLife(t, c, []string{"--manifests=" + manifests}, "a directory of manifests", rounds(20, 5000), rounds(200, 10000),
		func(n int) error {
			var file bytes.Buffer
			for i := range soaked {
				fmt.Fprintf(&file, "---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData: {key: %q}\n",
					soakSecret(i), soakText(n))
			}
			tmp := filepath.Join(manifests, "new")
			if err := os.WriteFile(tmp, file.Bytes(), 0o600); err != nil {
				return err
			}
			return os.Rename(tmp, filepath.Join(manifests, "secrets.yaml"))
		})
}

// soakAPI reads its objects from the API server, which would take most of an hour for a million updates.
func soakAPI(t *testing.T, c *cluster) {
	args := []string{"--access=service-account", "--kubeconfig=" + c.kubeconfig}
	secrets := c.client.CoreV1().Secrets(namespace)
	longLife(t, c, args, "the API server", rounds(2, 200), rounds(50, 1000), func(n int) error {
		failed := make(chan error, soaked)
		var all sync.WaitGroup
		slots := make(chan struct{}, 8)
		for i := range soaked {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: soakSecret(i)},
					StringData: map[string]string{"key": soakText(n)}}
				_, err := secrets.Update(context.Background(), s, metav1.UpdateOptions{})
				if apierrors.IsNotFound(err) {
					_, err = secrets.Create(context.Background(), s, metav1.CreateOptions{})
				}
				if err != nil {
					failed <- err
				}
			})
		}
		all.Wait()
		close(failed)
		return <-failed
	})
}

func soakSecret(i int) string { return fmt.Sprint("soak-", i) }

func soakText(n int) string { return fmt.Sprint("version ", n) }

// longLife publishes and unpublishes volumes, cycles times, while the objects of other volumes are updated, all of them
// sweeps times. Then the driver must hold what it held before. set gives all objects a version.
func longLife(t *testing.T, c *cluster, args []string, source string, sweeps, cycles int, set func(int) error) {
	if err := set(0); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, c.plain, args...)
	ctx, cancel := bounded(20*time.Minute, "soak")
	defer cancel()
	volume := func(i int) (kubelet.Pod, kubelet.Volume) {
		pod := kubelet.Pod{Namespace: namespace, Name: fmt.Sprint("pod-", i),
			UID: fmt.Sprintf("%08d-1111-4222-8333-444444444444", i)}
		return pod, kubelet.Volume{Name: "soak",
			Attributes: map[string]string{"secretName": soakSecret(i % soaked), "uid": "1000"}}
	}
	targets := make([]string, soaked)
	for i := range targets {
		pod, v := volume(i)
		var err error
		if targets[i], err = d.Publish(ctx, pod, v); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(i, n int) {
		t.Helper()
		testkit.Eventually(t, patience, fmt.Sprintf("version %d in volume %d", n, i), func() bool {
			b, err := os.ReadFile(filepath.Join(targets[i], "key"))
			return err == nil && string(b) == soakText(n)
		})
	}
	cycle := func(number int) error {
		pod, v := volume(soaked + number)
		if _, err := d.Publish(ctx, pod, v); err != nil {
			return err
		}
		if err := d.Unpublish(ctx, pod, v.Name); err != nil {
			return err
		}
		return d.RemovePod(pod)
	}

	version := 0
	sweep := func() {
		t.Helper()
		version++
		if err := set(version); err != nil {
			t.Fatal(err)
		}
		if version%4 == 0 { // waits for the driver, because faster updates would only be merged
			for i := range targets {
				shows(i, version)
			}
		}
	}
	// The driver creates here the resources that it creates once and reuses.
	for i := range 40 {
		if err := cycle(i); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		sweep()
	}
	before, start := measure(t, d), time.Now()

	var next atomic.Int64
	var cycling sync.WaitGroup
	for range 4 {
		cycling.Go(func() {
			for number := next.Add(1); number <= int64(cycles); number = next.Add(1) {
				if err := cycle(int(number)); err != nil {
					t.Errorf("cycle %d: %v", number, err)
					return
				}
			}
		})
	}
	for range sweeps {
		sweep()
	}
	cycling.Wait()
	took := time.Since(start)
	for i := range targets {
		shows(i, version)
	}
	for i, target := range targets {
		if names, err := list(target); err != nil || len(names) != 3 {
			t.Errorf("volume %d has %q, %v", i, names, err)
		}
	}
	var after usage
	testkit.Eventually(t, patience, "goroutines, descriptors, mounts and records to be what they were: "+before.String(),
		func() bool {
			after = measure(t, d)
			return after.goroutines <= before.goroutines && after.descriptors <= before.descriptors &&
				after.mounts == before.mounts && after.records == before.records
		})
	t.Logf("before: %v; after: %v", before, after)
	// The size of a Go heap varies: it may double between two collections.
	if grown := after.memory - before.memory; grown > 16<<20 {
		t.Errorf("the driver has %d KiB more than before", grown>>10)
	}
	written := refreshes(t, d) - before.refreshes
	if written < float64(sweeps)*soaked/5 { // The test waits for at least each fourth update in all volumes.
		t.Errorf("only %v updates were written: this test is about many", written)
	}
	for i, target := range targets {
		pod, v := volume(i)
		if err := d.Unpublish(ctx, pod, v.Name); err != nil {
			t.Errorf("unpublish %s: %v", target, err)
		}
		if err := d.RemovePod(pod); err != nil {
			t.Error(err)
		}
	}
	if mounts, records := testkit.MountsBelow(t, filepath.Join(d.Root, "pods")), d.Records(); len(mounts) > 0 ||
		len(records) > 0 {
		t.Errorf("mounts %q and records %q are left", mounts, records)
	}
	if n := d.Metric("fsuser_watched_objects"); n != 0 {
		t.Errorf("%v objects are watched", n)
	}
	reliability.Shown(t, "F-31", fmt.Sprintf("%s: %d updates issued and %.0f written to %d volumes, %d publish/unpublish "+
		"cycles, in %v; before %v; after %v",
		source, sweeps*soaked, written, soaked, cycles, took.Round(time.Second), before, after))
}

// usage is a driver's use of the machine.
type usage struct {
	goroutines, descriptors float64
	mounts, records         int
	// memory is the resident set, in bytes.
	memory    int
	refreshes float64
}

func (u usage) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f descriptors, %d mounts, %d records, %d MiB", u.goroutines, u.descriptors,
		u.mounts, u.records, u.memory>>20)
}

func measure(t testing.TB, d *testkit.Driver) usage {
	t.Helper()
	return usage{
		goroutines: d.Metric("go_goroutines"), descriptors: d.Metric("process_open_fds"),
		mounts: len(testkit.MountsBelow(t, filepath.Join(d.Root, "pods"))), records: len(d.Records()),
		memory: int(d.Metric("process_resident_memory_bytes")), refreshes: refreshes(t, d),
	}
}

// refreshes returns the number of refreshes that wrote files.
func refreshes(t testing.TB, d *testkit.Driver) (n float64) {
	t.Helper()
	_, metrics := d.Get("/metrics")
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(line, "fsuser_volume_operation_duration_seconds_count{"); ok &&
			strings.Contains(rest, `operation="refresh",outcome="ok"`) {
			var count float64
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &count); err != nil {
				t.Fatal(err)
			}
			n += count
		}
	}
	return n
}

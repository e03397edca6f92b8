// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// quantile returns a quantile of durations, in milliseconds.
func quantile(took []time.Duration, q float64) float64 {
	slices.Sort(took)
	return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000
}

// BenchmarkUpdate measures the time from the return of an update to the notification. It may be negative, because the
// event can overtake the answer.
func BenchmarkUpdate(b *testing.B) {
	admin := newClient(b)
	admin.create(b, secret("update-figure", "0"))
	b.Cleanup(func() { cleanUp(admin, secret("update-figure", "")) })
	api := newAPI(b, controlPlane.AdminConfig())
	ref := secretRef("update-figure")
	notified := make(chan time.Time, 100)
	api.Subscribe(ref, subscriber, false, func() { notified <- time.Now() })
	<-notified
	var took []time.Duration
	for b.Loop() {
		for n := range 50 {
			admin.update(b, secret("update-figure", strconv.Itoa(n+1)))
			updated := time.Now()
			took = append(took, (<-notified).Sub(updated))
		}
		admin.update(b, secret("update-figure", "0"))
		<-notified
	}
	b.ReportMetric(quantile(took, 0.5), "p50-ms")
	b.ReportMetric(quantile(took, 1), "max-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFirst measures Subscribe and Wait for an object without a watch, with the driver's resource version and with
// another one, on an idle API server and on one with other writes.
func BenchmarkFirst(b *testing.B) {
	admin := newClient(b)
	for n := range 200 {
		admin.create(b, secret(fmt.Sprintf("first-%d", n), "one"))
		b.Cleanup(func() { cleanUp(admin, secret(fmt.Sprintf("first-%d", n), "")) })
	}
	for _, writes := range []int{0, 50} {
		for _, version := range []string{"as asked", "unset"} {
			b.Run(fmt.Sprintf("resourceVersion %s, %d writes per second", version, writes), func(b *testing.B) {
				config := controlPlane.AdminConfig()
				if version == "unset" {
					config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return newest{rt} })
				}
				api := newAPI(b, config)
				watched(b, api, secretRef("first-0")) // opens the connection
				stop := write(b, writes)
				defer stop()
				var took []time.Duration
				for b.Loop() {
					for n := range 200 {
						ref := secretRef(fmt.Sprintf("first-%d", n))
						start := time.Now()
						api.Subscribe(ref, "first", false, func() {})
						waitKnown(b, api, ref)
						took = append(took, time.Since(start))
						if got := value(api, ref); got != "one" {
							b.Fatalf("content %q", got)
						}
						api.Unsubscribe(ref, "first")
						time.Sleep(5 * time.Millisecond) // The API server's cache would share requests of a burst.
					}
				}
				b.ReportMetric(quantile(took, 0.5), "p50-ms")
				b.ReportMetric(quantile(took, 0.99), "p99-ms")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// newest is a transport that requests the newest version instead of any.
type newest struct{ next http.RoundTripper }

func (n newest) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	query := r.URL.Query()
	query.Del("resourceVersion")
	r.URL.RawQuery = query.Encode()
	return n.next.RoundTrip(r)
}

// write updates a config map and a lease, perSecond times a second, until stop.
func write(t testing.TB, perSecond int) (stop func()) {
	t.Helper()
	if perSecond == 0 {
		return func() {}
	}
	admin := newClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "written"}, Data: map[string]string{}}
	cleanUp(admin, configMap)
	admin.create(t, configMap)
	lease := &coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Name: "written"},
	}
	const leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
	send := func(verb, path string) {
		now := metav1.NowMicro()
		lease.Spec.RenewTime = &now
		body, err := json.Marshal(lease)
		if err != nil {
			t.Error(err)
		}
		_ = admin.core.Verb(verb).AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
	}
	send("POST", leases)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			if n%2 == 0 {
				configMap.Data["n"] = strconv.Itoa(n)
				_ = admin.core.Put().Namespace(namespace).Resource("configmaps").Name("written").Body(configMap).Do(ctx).Error()
			} else {
				send("PUT", leases+"/written")
			}
			<-ticker.C
		}
	}()
	return func() {
		cancel()
		<-ended
		cleanUp(admin, configMap)
	}
}

// TestFreshObjects checks that the first read finds an object that was just created.
func TestFreshObjects(t *testing.T) {
	const fresh = 100
	admin := newClient(t)
	api := newAPI(t, controlPlane.AdminConfig())
	watched(t, api, secretRef("not-there")) // opens the connection
	for name, kind := range map[string]attributes.Kind{"secrets": attributes.Secret, "config maps": attributes.ConfigMap} {
		t.Run(name, func(t *testing.T) {
			missing := 0
			for n := range fresh {
				name := fmt.Sprintf("fresh-%d", n)
				var o object = secret(name, "one")
				if kind == attributes.ConfigMap {
					o = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
				}
				ref := source.Ref{Kind: kind, Namespace: namespace, Name: name}
				admin.createAtOnce(t, o)
				api.Subscribe(ref, subscriber, false, func() {})
				waitKnown(t, api, ref)
				_, err := api.Get(ref)
				if errors.Is(err, source.ErrNotFound) {
					missing++
				}
				api.Unsubscribe(ref, subscriber)
				admin.delete(t, o)
			}
			if missing > 0 {
				t.Errorf("%d of %d were reported missing right after their creation", missing, fresh)
			}
		})
	}
}

// BenchmarkMany watches 500 objects in a process of its own, and measures time and memory.
func BenchmarkMany(b *testing.B) {
	admin := newClient(b)
	for n := range many {
		admin.create(b, bigSecret(n))
		b.Cleanup(func() { cleanUp(admin, bigSecret(n)) })
	}
	kubeconfig := filepath.Join(b.TempDir(), "kubeconfig")
	if err := controlPlane.Kubeconfig(kubeconfig, controlPlane.AdminConfig()); err != nil {
		b.Fatal(err)
	}
	sum := map[string]float64{}
	runs := 0.
	for b.Loop() {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), memoryChild+"="+kubeconfig)
		child.Stderr = os.Stderr
		out, err := child.Output()
		if err != nil {
			b.Fatal(err)
		}
		var figures map[string]float64
		if err := json.Unmarshal(out, &figures); err != nil {
			b.Fatalf("%v in %q", err, out)
		}
		for name, figure := range figures {
			sum[name] += figure
		}
		runs++
	}
	for _, name := range slices.Sorted(maps.Keys(sum)) {
		b.ReportMetric(sum[name]/runs, name)
	}
	b.ReportMetric(0, "ns/op")
}

const (
	// memoryChild has the path of a kubeconfig in the process that BenchmarkMany starts.
	memoryChild = "FSUSER_TEST_MEMORY_CHILD"
	// memoryProfiles is the directory for profiles. Without it, there are no profiles.
	memoryProfiles = "FSUSER_TEST_MEMORY_PROFILES"
	many           = 500
)

// bigSecret returns a Secret with 4 KiB in three keys.
func bigSecret(n int) *corev1.Secret {
	s := secret(fmt.Sprintf("many-%d", n), "")
	for key := range 3 {
		s.Data["key"+strconv.Itoa(key)] = []byte(strings.Repeat("x", 4096/3))
	}
	return s
}

func memoryChildMain(kubeconfig string) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		panic(err)
	}
	config.QPS = -1
	figures, err := measureMany(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(figures)
}

func measureMany(config *rest.Config) (map[string]float64, error) {
	api, err := source.NewAPI(config, source.Options{})
	if err != nil {
		return nil, err
	}
	// One watch opens the connection and loads the code.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	api.Subscribe(secretRef("many-0"), "warm", false, func() {})
	api.Wait(ctx, secretRef("many-0"))
	rssBefore, _, heapBefore, stackBefore := memory()
	goroutinesBefore := runtime.NumGoroutine()

	start := time.Now()
	var wait sync.WaitGroup
	for n := range many {
		ref := secretRef(fmt.Sprintf("many-%d", n))
		api.Subscribe(ref, subscriber, false, func() {})
		wait.Go(func() { api.Wait(ctx, ref) })
	}
	wait.Wait()
	took := time.Since(start)
	for n := range many {
		if _, err := api.Get(secretRef(fmt.Sprintf("many-%d", n))); err != nil {
			return nil, err
		}
	}
	peak, _, _, _ := rss()
	running := runtime.NumGoroutine()
	_, rssAfter, heapAfter, stackAfter := memory()
	if dir := os.Getenv(memoryProfiles); dir != "" {
		for _, name := range []string{"heap", "goroutine"} {
			f, err := os.Create(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			if err := errors.Join(pprof.Lookup(name).WriteTo(f, 0), f.Close()); err != nil {
				return nil, err
			}
		}
	}
	start = time.Now()
	api.Close()
	return map[string]float64{
		"known-ms":             float64(took.Milliseconds()),
		"close-ms":             float64(time.Since(start).Milliseconds()),
		"rss-before-MiB":       rssBefore / 1024,
		"rss-peak-MiB":         peak / 1024,
		"rss-after-MiB":        rssAfter / 1024,
		"rss-KiB/watch":        (rssAfter - rssBefore) / many,
		"heap-KiB/watch":       (heapAfter - heapBefore) / many,
		"stack-KiB/watch":      (stackAfter - stackBefore) / many,
		"goroutines/watch":     float64(running-goroutinesBefore) / many,
		"runtime-overhead-MiB": overhead(),
	}, nil
}

// memory returns, in KiB, the resident memory now and without free memory, and the memory of the heap and of the
// stacks.
func memory() (now, least, heap, stack float64) {
	now, _, _, _ = rss()
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	least, _, _, _ = rss()
	return now, least, float64(m.HeapInuse) / 1024, float64(m.StackInuse) / 1024
}

func overhead() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.Sys-m.HeapSys-m.StackSys) / (1 << 20)
}

func rss() (kib, _, _, _ float64) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		panic(err)
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(b))[1], 64)
	if err != nil {
		panic(err)
	}
	return pages * float64(os.Getpagesize()) / 1024, 0, 0, 0
}

// TestMany watches 500 objects at once, and gets a result for each.
func TestMany(t *testing.T) {
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	for n := range many {
		api.Subscribe(source.Ref{Kind: attributes.ConfigMap, Namespace: namespace, Name: fmt.Sprintf("many-%d", n)},
			subscriber, false, func() {})
	}
	for n := range many {
		waitKnown(t, api, source.Ref{Kind: attributes.ConfigMap, Namespace: namespace, Name: fmt.Sprintf("many-%d", n)})
	}
	if got := api.Watched(); got != many {
		t.Errorf("%d watched, want %d", got, many)
	}
	if got := requests.open.Load(); got != many {
		t.Errorf("%d watches open, want %d", got, many)
	}
	closeSoon(t, api)
	testkit.Eventually(t, soon, "the watches to end", func() bool { return requests.open.Load() == 0 })
}

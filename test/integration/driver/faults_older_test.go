// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// restartBehindOldCache restarts the driver while the cache of its API server is older than the files.
func restartBehindOldCache(t *testing.T, c *cluster) string {
	const name = "f43-restart"
	v := ssh("secretName", name)
	p := c.pod(t, name, v)
	s := c.showNew(t, p, v)

	s.Kill()
	s.behindOldCache()
	s.StartAgain()
	s.awaitRefresh(t, p)
	s.stillNew(t)
	s.follow(t, s.dir)
	s.stop()
	unpublish(t, s.Driver, p, v.Name)
	nothingAtAll(t, s.Driver)
	return fmt.Sprintf("restart: %d answers from the old cache", s.answers)
}

// adoptBehindOldCache restarts the driver without its records, while the cache of its API server is older than the
// files. Another volume of the object is published from this cache first.
func adoptBehindOldCache(t *testing.T, c *cluster) string {
	const name = "f43-adopt"
	v := ssh("secretName", name)
	p, other := c.pod(t, name, v), c.pod(t, name+"-other", v)
	s := c.showNew(t, p, v)

	s.Kill()
	for _, record := range s.Records() {
		if err := os.Remove(filepath.Join(s.State, record)); err != nil {
			t.Fatal(err)
		}
	}
	s.behindOldCache()
	s.StartAgain()
	// A new pod has seen nothing, so its volume may show an old version.
	otherDir, otherStop := publish(t, s.Driver, other, v)
	if _, err := s.Publish(deadline(t), p, v); err != nil {
		t.Fatal(err)
	}
	s.awaitRefresh(t, p)
	s.stillNew(t)
	s.follow(t, s.dir, otherDir)
	s.stop()
	otherStop()
	for _, p := range []kubelet.Pod{p, other} {
		unpublish(t, s.Driver, p, v.Name)
	}
	nothingAtAll(t, s.Driver)
	return fmt.Sprintf("adoption: %d answers from the old cache", s.answers)
}

// shownNew is a driver behind a proxy with a volume. The volume's files have followed a Secret from "old" to "new".
type shownNew struct {
	*testkit.Driver
	c     *cluster
	proxy *faultproxy.Proxy
	// old is the Secret's first version.
	old *corev1.Secret
	// dir is the volume as a container sees it, until stop is called. generation is the generation of the files with
	// "new".
	dir, generation string
	stop            func()
	// answers counts the requests that the old cache could answer.
	answers int
}

// showNew creates a Secret with the pod's name, and a volume that shows its second version.
func (c *cluster) showNew(t *testing.T, p kubelet.Pod, v kubelet.Volume) *shownNew {
	t.Helper()
	s := &shownNew{c: c, old: c.secret(t, p.Name, map[string]string{"k": "old"})}
	s.Driver, s.proxy = c.startBehind(t)
	s.dir, s.stop = publish(t, s.Driver, p, v)
	c.update(t, p.Name, map[string]string{"k": "new"})
	holds(t, filepath.Join(s.dir, "k"), "new")
	s.generation = link(t, s.dir)
	return s
}

// behindOldCache gives the proxy a cache that has the Secret's first version.
func (s *shownNew) behindOldCache() {
	s.proxy.Answer(s.proxy.OldCache("secrets", s.old))
}

// awaitRefresh waits until the driver knows that the files are current.
func (s *shownNew) awaitRefresh(t *testing.T, p kubelet.Pod) {
	t.Helper()
	testkit.Eventually(t, converged, "the volume to be found current", func() bool {
		now := statusOf(t, s.Driver, p)
		return now.Refreshed != nil && now.Stale == ""
	})
}

// stays fails t if the files of a volume were written again, or the key k has another text.
func stays(t *testing.T, dir, text, generation string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, "k"))
	if now := link(t, dir); err != nil || string(got) != text || now != generation {
		t.Fatalf("the files went back: %q in %s, %v; want %q in %s", got, now, err, text, generation)
	}
}

// stillNew fails t if the files show an older version.
func (s *shownNew) stillNew(t *testing.T) {
	t.Helper()
	stays(t, s.dir, "new", s.generation)
}

// follow ends the use of the old cache, and waits until the volumes show a change.
func (s *shownNew) follow(t *testing.T, dirs ...string) {
	t.Helper()
	for _, r := range s.proxy.Requests() {
		if r.URL.Query().Get("resourceVersion") != "" {
			s.answers++
		}
	}
	s.proxy.Answer(nil)
	s.proxy.Say(nil)
	s.c.update(t, s.old.Name, map[string]string{"k": "newer"})
	for _, dir := range dirs {
		holds(t, filepath.Join(dir, "k"), "newer")
	}
}

// TestRestoredEtcd has a cluster of its own, because other tests would lose their objects.
func TestRestoredEtcd(t *testing.T) {
	nothingLeft(t)
	c := startCluster(t)
	revisions := []int{0}
	if torture() {
		revisions = append(revisions, 500)
	}
	for _, n := range revisions {
		t.Run(fmt.Sprintf("F-43 the revision is raised by %d", n), func(t *testing.T) {
			figure := restoredEtcd(t, c, n)
			reliability.Shown(t, "F-43", figure)
		})
	}
}

// laggingReplica restarts the driver with an API server that is cut off from etcd, and whose cache is older than the
// files.
func laggingReplica(t *testing.T, c *cluster) string {
	const name = "f43-replica"
	c.secret(t, name, map[string]string{"k": "old"})
	relay := faultproxy.NewRelay(t, c.EtcdAddress())
	replica := c.startReplica(t, relay.Addr().String())
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.Kubeconfig(kubeconfig, c.credentials); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, c.binary, "--access="+c.access, "--kubeconfig="+kubeconfig)
	p, v := pod(name), ssh("secretName", name)
	dir, stop := publish(t, d, p, v)
	testkit.Eventually(t, converged, "the replica's cache to have the Secret", func() bool {
		return replica.cached(t, name) == "old"
	})

	relay.Stall()
	c.update(t, name, map[string]string{"k": "new"})
	holds(t, filepath.Join(dir, "k"), "new")
	generation := link(t, dir)
	d.Kill()
	proxy := faultproxy.New(t, replica.credentials)
	if err := c.Kubeconfig(kubeconfig, proxy.Config()); err != nil {
		t.Fatal(err)
	}
	d.StartAgain()
	restarted := time.Now()
	testkit.Eventually(t, 2*converged, "the volume to be stale, with its files", func() bool {
		stays(t, dir, "new", generation)
		return d.Metric("fsuser_stale_volumes") == 1
	})
	noticed := time.Since(restarted)
	if text := replica.cached(t, name); text != "old" {
		t.Errorf("the replica does not lag: its cache has %q", text)
	}
	if now := statusOf(t, d, p); now.Stale == "" || now.Refreshed != nil {
		t.Errorf("the status is %+v", now)
	}
	requests := proxy.Asked()

	relay.Heal()
	healed := time.Now()
	testkit.Eventually(t, converged, "the volume to be current", func() bool {
		stays(t, dir, "new", generation)
		now := statusOf(t, d, p)
		return now.Refreshed != nil && now.Stale == ""
	})
	took := time.Since(healed)
	c.update(t, name, map[string]string{"k": "newer"})
	holds(t, filepath.Join(dir, "k"), "newer")
	stop()
	unpublish(t, d, p, v.Name)
	nothingAtAll(t, d)
	return fmt.Sprintf("an API server that lags: stale after %s, %d requests; current %s after its end",
		seconds(noticed), requests, seconds(took))
}

// startReplica starts another API server, which reaches etcd at an address, until t ends. It returns the cluster as
// clients of that API server see it.
func (c *cluster) startReplica(t *testing.T, etcdAddress string) *cluster {
	t.Helper()
	host, stop, err := c.StartReplica(deadline(t), etcdAddress)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	replica := *c
	replica.credentials = rest.CopyConfig(c.credentials)
	replica.credentials.Host = host
	if replica.Interface, err = kubernetes.NewForConfig(replica.credentials); err != nil {
		t.Fatal(err)
	}
	return &replica
}

// cached returns the value of the key k of a Secret in the API server's cache.
func (c *cluster) cached(t *testing.T, name string) string {
	t.Helper()
	s, err := c.CoreV1().Secrets(c.namespace).Get(deadline(t), name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	return string(s.Data["k"])
}

// restoredEtcd restores etcd to an earlier version and raises its revision, for a running driver and for one that
// starts afterwards.
func restoredEtcd(t *testing.T, c *cluster, revisions int) string {
	const volumes, changes = 10, 10
	runs, proxy := c.startBehind(t)
	starts, _ := c.startBehind(t)
	drivers := []*testkit.Driver{runs, starts}
	var all []*many
	for i, d := range drivers {
		all = append(all, c.manyVolumes(t, d, fmt.Sprintf("f43-restored-%d-%d", revisions, i), volumes))
	}
	if err := c.BackUpEtcd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for i := range changes { // This number of revisions is used for a second time.
		for _, m := range all {
			m.update(t, fmt.Sprint("change ", i))
		}
	}
	for _, m := range all {
		m.show(t, converged, fmt.Sprint("change ", changes-1))
	}
	starts.Kill()

	proxy.Stall() // The driver's requests wait, as at a load balancer while no API server is ready.
	if err := c.StopAPIServer(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.RestoreEtcd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.AddRevisions(deadline(t), revisions); err != nil {
		t.Fatal(err)
	}
	asked := proxy.Asked()
	if err := c.StartAPIServer(deadline(t)); err != nil {
		t.Fatal(err)
	}
	proxy.Heal()
	back := time.Now()
	starts.StartAgain()
	for _, m := range all {
		m.show(t, converged, "before")
	}
	took := time.Since(back)
	for _, d := range drivers {
		awaitStale(t, d, 0)
	}
	requests := proxy.Asked() - asked
	if requests > 20*volumes {
		t.Errorf("%d requests for %d volumes", requests, volumes)
	}
	for _, m := range all {
		m.update(t, "after")
		m.show(t, converged, "after")
		m.unpublish(t)
	}
	for _, d := range drivers {
		nothingAtAll(t, d)
	}
	return fmt.Sprintf("etcd restored under %d volumes: all as old as etcd %s after the API server was ready, %d requests",
		2*volumes, seconds(took), requests)
}

// awaitStale waits until n volumes are stale.
func awaitStale(t *testing.T, d *testkit.Driver, n int) {
	t.Helper()
	testkit.Eventually(t, converged, fmt.Sprintf("%d volumes to be stale", n), func() bool {
		return d.Metric("fsuser_stale_volumes") == float64(n)
	})
}

// statusOf returns the driver's report about the volume of a pod.
func statusOf(t *testing.T, d *testkit.Driver, p kubelet.Pod) status.Volume {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.State, "status.sock"))
		},
	}}
	response, err := client.Get("http://driver/status")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var node status.Node
	if err := json.NewDecoder(response.Body).Decode(&node); err != nil {
		t.Fatal(err)
	}
	for _, v := range node.Volumes {
		if v.PodUID == p.UID {
			return v
		}
	}
	t.Fatalf("the status has no volume of pod %s", p.Name)
	return status.Volume{}
}

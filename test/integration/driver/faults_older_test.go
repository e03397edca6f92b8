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

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
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

// adoptBehindOldCache restarts the driver without its records, while the cache of its API server is older than the files.
// Another volume of the object is published from this cache first.
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

// shownNew is a driver behind a proxy, with a volume whose files followed a Secret from "old" to "new".
type shownNew struct {
	*testkit.Driver
	c     *cluster
	proxy *faultproxy.Proxy
	// old is the Secret's first version.
	old *corev1.Secret
	// dir is the volume as a container sees it, until stop is called. generation is that of the files with "new".
	dir, generation string
	stop            func()
	// answers counts the requests that the old cache could answer.
	answers int
}

// showNew makes a Secret of the pod's name, and a volume that shows its second version.
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

// stillNew fails t if the files went back.
func (s *shownNew) stillNew(t *testing.T) {
	t.Helper()
	if text, err := os.ReadFile(filepath.Join(s.dir, "k")); err != nil || string(text) != "new" || link(t, s.dir) != s.generation {
		t.Errorf("the files went back: %q, %v", text, err)
	}
}

// follow ends the old cache, and waits until the volumes show a change.
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

// statusOf returns what the driver reports about the volume of a pod.
func statusOf(t *testing.T, d *testkit.Driver, p kubelet.Pod) status.Volume {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.State, "status.sock"))
		},
	}}
	response, err := client.Get("http://driver/volumes")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var volumes []status.Volume
	if err := json.NewDecoder(response.Body).Decode(&volumes); err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		if v.PodUID == p.UID {
			return v
		}
	}
	t.Fatalf("the status has no volume of pod %s", p.Name)
	return status.Volume{}
}


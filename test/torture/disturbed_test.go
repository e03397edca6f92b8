// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// disturbance is an event in a round in addition to kills.
type disturbance int

const (
	none disturbance = iota
	// stall means that a process holds the directory of a volume.
	stall
	// lag means that the API server answers from a cache that is older than the volumes, after a restart.
	lag
	// flood means that an object is updated, and connections to the driver's sockets are opened, without end.
	flood
	disturbances
)

// killBesideStall kills the driver while a process holds the directory of a volume: at once, at a random time, and at a
// point if the driver reaches it. A refresh of the volume hangs, and so does the end of each killed process. In the
// meantime, the next process must serve the other volumes.
func (h *harness) killBesideStall(p point) {
	h.t.Helper()
	const object = "a"
	victim := h.want(anOwner(form{byName, layouts()[rand.N(len(layouts()))]}), object)
	h.converge("before a stall")
	release := testkit.Stall(h.t, h.target(victim))
	h.driver.Stalled, h.unsettled[victim.pod.UID] = true, true
	h.set(object)
	testkit.Eventually(h.t, patience, "the refresh of the stalled volume to hang", func() bool {
		n, err := testkit.HangingThreads(h.driver.PID())
		return err == nil && n > 0
	})
	h.converge("beside a stalled volume")

	h.arm(p.name, "kill")
	h.restart(h.driver.Kill)
	h.killAt = time.Now().Add(rand.N(200 * time.Millisecond))
	h.wantNext("b")
	h.set("b")
	h.converge("after a restart beside a stalled volume")
	h.kubelet.Republish()
	h.settle("publish again beside a stalled volume, and the stalled one")
	h.drop()
	h.settle("unpublish a volume beside a stalled one")
	h.disarm(p.name)
	h.killAt = time.Time{}
	unpublish := rand.N(2) == 0
	if unpublish {
		h.dropPod(victim)
		h.settle("unpublish the stalled volume")
	}

	release()
	h.driver.AwaitKilled()
	h.driver.Stalled = false
	delete(h.unsettled, victim.pod.UID)
	if !unpublish {
		h.set(object)
		h.converge("after a stall")
		h.check("after a stall")
		h.dropPod(victim)
		h.settle("unpublish the volume after its stall")
	}
	h.check("after a stall, and kills at " + p.name + " and at a random time")
	h.disturbed[stall]++
}

// restartBehindOldCache restarts driver and kubelet while the API server's cache is older than the content of the
// volumes. No mount is removed in this round.
func (h *harness) restartBehindOldCache() {
	h.t.Helper()
	handlers := map[string]faultproxy.Handler{}
	for _, object := range objects() {
		handlers[object] = h.cluster.oldCache(object)
		h.set(object)
	}
	h.converge("before the API server's cache is old")
	h.restartBoth(func() {
		h.loseRecords()
		h.cluster.proxy.Answer(func(w http.ResponseWriter, r *http.Request) bool {
			handle := handlers[strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")]
			return handle != nil && handle(w, r)
		})
	})
	h.converge("after restarts behind an old cache")
	h.cluster.proxy.Answer(nil)
	h.cluster.proxy.Say(nil)
	for _, object := range objects() {
		h.set(object)
	}
	h.converge("after the API server's cache was old")
	h.disturbed[lag]++
}

// oldCache returns a handler like an API server that never learns of a version of an object after the current one.
func (c *cluster) oldCache(name string) faultproxy.Handler {
	c.t.Helper()
	var resource string
	var object metav1.Object
	var err error
	if isConfigMap(name) {
		resource = "configmaps"
		object, err = c.client.CoreV1().ConfigMaps(c.namespace).Get(context.Background(), name, metav1.GetOptions{})
	} else {
		resource = "secrets"
		object, err = c.client.CoreV1().Secrets(c.namespace).Get(context.Background(), name, metav1.GetOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return c.proxy.OldCache(resource, object)
}

// flooded is the object that is updated without end.
const flooded = "flooded"

// startFlood publishes a volume, and updates its object and opens connections to the driver's sockets until stop is
// called. After that, the volume must show the last update.
func (h *harness) startFlood() (stop func()) {
	h.t.Helper()
	h.set(flooded)
	m := h.want(anOwner(inLinks(byName)), flooded)
	h.unsettled[m.pod.UID] = true
	ctx, cancel := context.WithCancel(context.Background())
	var flooding sync.WaitGroup
	version := h.versions[flooded]
	flooding.Go(func() {
		for ctx.Err() == nil {
			if err := h.cluster.trySet(flooded, version+1); err != nil {
				h.t.Errorf("flood: %v", err)
				return
			}
			version++
		}
	})
	flooding.Go(func() { connect(ctx, "unix", filepath.Join(h.driver.Root, "plugins", "fsuser.csi.io", "csi.sock")) })
	flooding.Go(func() { connect(ctx, "tcp", h.driver.HTTPAddress()) })
	end := func() {
		cancel()
		flooding.Wait()
	}
	h.t.Cleanup(end)
	return func() {
		h.t.Helper()
		end()
		h.versions[flooded] = version
		delete(h.unsettled, m.pod.UID)
		h.converge("after a flood")
		h.dropPod(m)
		h.settle("unpublish the volume of the flood")
		h.disturbed[flood]++
	}
}

// connect opens silent connections, one each millisecond, and keeps the last hundred.
func connect(ctx context.Context, network, address string) {
	var open []net.Conn
	for ctx.Err() == nil {
		// The driver may not run, or may refuse so many connections.
		if conn, err := net.Dial(network, address); err == nil {
			open = append(open, conn)
		}
		if len(open) > 100 {
			open[0].Close()
			open = open[1:]
		}
		time.Sleep(time.Millisecond)
	}
	for _, conn := range open {
		conn.Close()
	}
}

// showDisturbed reports the results of the kills in disturbances. Each disturbance must have happened.
func (h *harness) showDisturbed(t *testing.T) {
	for _, shown := range []struct {
		kind disturbance
		ids  []string
		what string
	}{
		{stall, []string{"F-44", "F-45"}, "stalls, each while the driver is killed once or more"},
		{lag, []string{"F-43"}, "restarts, some after kills, behind an old cache"},
		{flood, []string{"F-49"}, "floods while the driver is killed"},
	} {
		n := h.disturbed[shown.kind]
		if n == 0 {
			t.Errorf("there were no %s", shown.what)
		}
		for _, id := range shown.ids {
			reliability.Shown(t, id, fmt.Sprintf("%d %s", n, shown.what))
		}
	}
}

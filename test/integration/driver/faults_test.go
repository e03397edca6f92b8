// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// TestFaults makes those faults of docs/reliability.md that concern the driver's surroundings: the API server behind a
// proxy, kubelet's directories, and the driver's own directories. The faults inside of the driver (kills, panics,
// races) are in test/torture. Each fault has objects of its own; all share one API server.
func TestFaults(t *testing.T) {
	nothingLeft(t)
	c := startCluster(t)
	node := c.asNode(t)
	type fault struct {
		id, name string
		run      func(*testing.T, *cluster) (figure string)
	}
	faults := []fault{
		{"F-01", "the API server is away at a publish: kubelet is told to try again, and nothing is left",
			publishWithoutAPIServer},
		{"F-02", "the API server is away at a change: the files stay, metric and status tell, and it heals",
			changeWithoutAPIServer},
		{"F-03", "the driver restarts while the API server is away: it serves, and 200 volumes follow without a stampede",
			restartWithoutAPIServer},
		{"F-04", "watches end with 410: each object is read anew, once, and no file flaps", watchesExpire},
		{"F-07", "two keys change together, and one that is required goes: the last good version stays", requiredKeyGoes},
		{"F-09", "SIGTERM during 50 publishes: all end, the mounts stay, the exit code is 0", drain},
		{"F-09", "SIGTERM during a publish that hangs: it is undone in time", drainHanging},
		{"F-10", "the node reboots: nothing is mounted by itself, republish and unpublish work", reboot},
		{"F-11", "the pod's directory is removed without an unpublish: the volume is forgotten", directoryRemoved},
		{"F-14", "a process works in a volume that is unpublished: it goes at once for all others", busy},
		{"F-18",
			"foreign and broken mounts at the target: a publish is refused and does not touch them, an unpublish takes them " +
				"away", foreignMounts},
		{"F-19", "the directory of records is full, then read-only: only new volumes fail", recordsCanNotBeWritten},
		{"F-20", "records are damaged: the other volumes are taken up, and a republish takes up theirs", damagedRecords},
		{"F-26", "immutable objects are made anew, data moves to binaryData, the type changes: the files follow",
			objectsOfAnotherKind},
		{"F-27", "the right to read is taken away in the middle: the files stay, all is told, and few requests are made",
			noRole},
		{"F-27", "the driver may not act as its node any more: the files stay, all is told, and few requests are made" +
			asNode, noImpersonation},
		{"F-27", "no pod declares the object any more: the files stay, all is told, and few requests are made" + asNode,
			noReference},
		{"F-28", "the network swallows all packets: the driver notices by itself", swallowed},
		{"F-29", "an API server answers from an old cache: the files do not go back", oldReplica},
		{"F-33", "kubelet's root directory is a symbolic link: publish, restart and unpublish work", symlinkedRoot},
		{"F-39", "no secret leaks" + asNode, nothingLeaksAsNode},
		{"F-43", "the driver restarts, and an API server answers from an old cache: the files do not go back",
			restartBehindOldCache},
		{"F-43", "a volume is adopted, and an API server answers from an old cache: the files do not go back",
			adoptBehindOldCache},
		{"F-43", "the driver restarts at another API server, which lags: the files do not go back", laggingReplica},
		{"F-44",
			"processes hold eight volumes: all others go on, and the held ones are reported, unpublished and follow later",
			stalledVolumes},
		{"F-44", "SIGTERM while a process holds a volume: the driver stops, and the next one takes over", stopBesideStall},
	}
	for _, fault := range faults {
		// These requests have another result if the Node authorizer decides.
		if slices.Contains([]string{"F-01", "F-02", "F-03"}, fault.id) {
			fault.name += asNode
			faults = append(faults, fault)
		}
	}
	for _, fault := range faults {
		t.Run(fault.id+" "+fault.name, func(t *testing.T) {
			t.Parallel()
			c := c
			if strings.HasSuffix(fault.name, asNode) {
				c = node
			}
			figure := fault.run(t, c)
			reliability.Shown(t, fault.id, figure)
		})
	}
}

// torture reports whether faults may take minutes.
func torture() bool { return os.Getenv("FSUSER_TORTURE") != "" }

const (
	// asNode is the end of the names of tests of the default access, which acts as the node.
	asNode = ", with --access=node"
	// converged is the longest time between the end of a fault and the refresh of the files.
	converged = 90 * time.Second
	staleText = "stale for"
)

// startBehind starts a driver that reaches the API server through a proxy.
func (c *cluster) startBehind(t *testing.T, args ...string) (*testkit.Driver, *faultproxy.Proxy) {
	t.Helper()
	proxy := faultproxy.New(t, c.credentials)
	return c.startAt(t, proxy, args...), proxy
}

// startAt starts a driver that reaches the API server through this proxy.
func (c *cluster) startAt(t *testing.T, proxy *faultproxy.Proxy, args ...string) *testkit.Driver {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.Kubeconfig(kubeconfig, proxy.Config()); err != nil {
		t.Fatal(err)
	}
	return testkit.StartDriver(t, c.binary, append(args, "--access="+c.access, "--kubeconfig="+kubeconfig)...)
}

// many is a number of pods with a volume each, and a Secret each.
type many struct {
	*testkit.Driver
	c     *cluster
	names []string
	pods  map[string]kubelet.Pod
}

// manyVolumes creates n Secrets and publishes a volume of each. The key k holds "before".
func (c *cluster) manyVolumes(t *testing.T, d *testkit.Driver, name string, n int) *many {
	t.Helper()
	m := &many{Driver: d, c: c, pods: map[string]kubelet.Pod{}}
	for i := range n {
		name := fmt.Sprintf("%s-%d", name, i)
		m.names, m.pods[name] = append(m.names, name), c.pod(t, name, ssh("secretName", name))
	}
	m.each(t, func(name string) error {
		_, err := c.CoreV1().Secrets(c.namespace).Create(context.Background(), secretOf(name, "before"),
			metav1.CreateOptions{})
		return err
	})
	t.Cleanup(func() {
		m.each(t, func(name string) error {
			return c.CoreV1().Secrets(c.namespace).Delete(context.Background(), name, metav1.DeleteOptions{})
		})
	})
	m.each(t, func(name string) error {
		_, err := d.Publish(deadline(t), m.pods[name], ssh("secretName", name))
		return err
	})
	return m
}

func secretOf(name, text string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"k": text}}
}

// each calls f for each name, with 20 at the same time.
func (m *many) each(t *testing.T, f func(name string) error) {
	t.Helper()
	var running sync.WaitGroup
	room := make(chan struct{}, 20)
	for _, name := range m.names {
		room <- struct{}{}
		running.Go(func() {
			defer func() { <-room }()
			if err := f(name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	running.Wait()
}

func (m *many) update(t *testing.T, text string) {
	t.Helper()
	m.each(t, func(name string) error {
		_, err := m.c.CoreV1().Secrets(m.c.namespace).Update(context.Background(), secretOf(name, text),
			metav1.UpdateOptions{})
		return err
	})
}

// show waits until all volumes have the text.
func (m *many) show(t *testing.T, bound time.Duration, text string) {
	t.Helper()
	var missing int
	defer func() {
		if t.Failed() {
			t.Logf("%d volumes do not show %q", missing, text)
		}
	}()
	testkit.Eventually(t, bound, fmt.Sprintf("%d volumes to show %q", len(m.names), text), func() bool {
		missing = 0
		for _, name := range m.names {
			if b, err := os.ReadFile(m.Target(m.pods[name], "ssh") + "/k"); err != nil || string(b) != text {
				missing++
			}
		}
		return missing == 0
	})
}

func (m *many) unpublish(t *testing.T) {
	t.Helper()
	m.each(t, func(name string) error {
		return errors.Join(m.Unpublish(deadline(t), m.pods[name], "ssh"), m.RemovePod(m.pods[name]))
	})
	m.names = nil
}

// nothingOf fails t if anything is left of a volume after a failed publish or an unpublish.
func nothingOf(t *testing.T, d *testkit.Driver, p kubelet.Pod) {
	t.Helper()
	target := d.Target(p, "ssh")
	if mounts := testkit.MountsBelow(t, target); len(mounts) > 0 {
		t.Errorf("mounts are left: %q", mounts)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", target, err)
	}
}

// nothingAtAll fails t if anything is left of any volume.
func nothingAtAll(t *testing.T, d *testkit.Driver) {
	t.Helper()
	for _, metric := range []string{"fsuser_volumes", "fsuser_watched_objects", "fsuser_stale_volumes"} {
		if n := d.Metric(metric); n != 0 {
			t.Errorf("%s is %v", metric, n)
		}
	}
	if records := d.Records(); len(records) > 0 {
		t.Errorf("records are left: %q", records)
	}
	// That of the root directory itself is the test's.
	if mounts := testkit.MountsBelow(t, d.Root); len(mounts) != 1 {
		t.Errorf("mounts are left: %q", mounts)
	}
}

// eventsOf returns the reasons of the Events of the cluster's pods whose names have a prefix.
func (c *cluster) eventsOf(t *testing.T, prefix string) (reasons []string) {
	t.Helper()
	events, err := c.CoreV1().Events(c.namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if strings.HasPrefix(e.InvolvedObject.Name, prefix) {
			reasons = append(reasons, e.InvolvedObject.Name+" "+e.Reason)
		}
	}
	return reasons
}

// link returns the target of ..data. If it changes, the files were written.
func link(t *testing.T, dir string) string {
	t.Helper()
	target, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// seconds returns a duration in the format of figures.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

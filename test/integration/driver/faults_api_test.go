// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

func publishWithoutAPIServer(t *testing.T, c *cluster) string {
	c.secret(t, "f01", map[string]string{"k": "text"})
	d, proxy := c.startBehind(t)
	answers := []struct {
		name string
		make func()
		code codes.Code
		// patience is the timeout of the caller. Kubelet's timeout is two minutes.
		patience time.Duration
	}{
		{"the connection is reset", proxy.Cut, codes.Unavailable, time.Minute},
		{"500", func() { proxy.Answer(faultproxy.Status(500, metav1.StatusReasonInternalError, "broke")) }, codes.Unavailable,
			time.Minute},
		{"503", func() { proxy.Answer(faultproxy.Status(503, metav1.StatusReasonServiceUnavailable, "later")) },
			codes.Unavailable, time.Minute},
		{"429 with Retry-After", func() {
			proxy.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Retry-After", "1")
				return faultproxy.Status(429, metav1.StatusReasonTooManyRequests, "slow down")(w, r)
			})
		}, codes.Unavailable, time.Minute},
		{"410 to everything", func() { proxy.Answer(faultproxy.Status(410, metav1.StatusReasonExpired, "too old")) },
			codes.Unavailable, time.Minute},
		{"401", func() { proxy.Answer(faultproxy.Status(401, metav1.StatusReasonUnauthorized, "who?")) }, codes.Unavailable,
			time.Minute},
		{"no answer, and the caller gives up", proxy.Stall, codes.DeadlineExceeded, 3 * time.Second},
		{"no answer", proxy.Stall, codes.Unavailable, time.Minute},
	}
	var longest time.Duration
	p := c.pod(t, "f01", ssh("secretName", "f01"))
	for _, answer := range answers {
		answer.make()
		ctx, cancel := context.WithTimeout(t.Context(), answer.patience)
		start := time.Now()
		_, err := d.Publish(ctx, p, ssh("secretName", "f01"))
		cancel()
		longest = max(longest, time.Since(start))
		if status.Code(err) != answer.code {
			t.Errorf("%s: got %v after %v, want %v", answer.name, err, time.Since(start), answer.code)
		}
		// After the caller has given up, the driver ends the call a moment later.
		testkit.Eventually(t, converged, answer.name+": the call to end",
			func() bool { return d.Metric("fsuser_watched_objects") == 0 })
		nothingOf(t, d, p)
		nothingAtAll(t, d)
		proxy.Answer(nil)
		proxy.Heal()
		if _, err := d.Publish(deadline(t), p, ssh("secretName", "f01")); err != nil {
			t.Errorf("%s: the publish after it: %v", answer.name, err)
		}
		unpublish(t, d, p, "ssh")
	}
	nothingAtAll(t, d)
	return fmt.Sprintf("%d ways to be away; the longest call took %s", len(answers), seconds(longest))
}

func changeWithoutAPIServer(t *testing.T, c *cluster) string {
	c.secret(t, "f02", map[string]string{"k": "before"})
	d, proxy := c.startBehind(t)
	v := ssh("secretName", "f02")
	p := c.pod(t, "f02", v)
	dir, stop := publish(t, d, p, v)

	// A short interruption is no outage.
	proxy.Cut()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if n := d.Metric("fsuser_stale_volumes"); n != 0 {
			t.Fatalf("%v volumes are stale in an interruption of 3 s", n)
		}
	}
	proxy.Heal()
	c.update(t, "f02", map[string]string{"k": "between"})
	holds(t, filepath.Join(dir, "k"), "between") // The watch works, so the next outage has a new beginning.
	generation := link(t, dir)
	if strings.Contains(d.Log(), "can't be read") {
		t.Error("an interruption of 3 s is in the log")
	}

	proxy.Cut()
	c.update(t, "f02", map[string]string{"k": "after"})
	away := time.Now()
	testkit.Eventually(t, converged, "the outage in the metrics",
		func() bool { return d.Metric("fsuser_stale_volumes") == 1 })
	noticed := time.Since(away)
	if s := d.Metric("fsuser_oldest_stale_volume_seconds"); s < 10 || s > time.Since(away).Seconds() {
		t.Errorf("stale for %v s, away for %v", s, time.Since(away))
	}
	if table := d.Status(); !strings.Contains(table, staleText) ||
		!strings.Contains(table, fmt.Sprintf("Secret %q: can't be read now: ", c.namespace+"/f02")) {
		t.Errorf("status:\n%s", table)
	}
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Errorf("republish: %v", err)
	}
	if status, body := d.Get("/healthz"); status != 200 {
		t.Errorf("unhealthy: %d %s", status, body)
	}
	holds(t, filepath.Join(dir, "k"), "between")
	if link(t, dir) != generation {
		t.Error("the files were written anew")
	}

	proxy.Heal()
	back := time.Now()
	holds(t, filepath.Join(dir, "k"), "after")
	took := time.Since(back)
	if took > converged {
		t.Errorf("the files followed %v after the outage", took)
	}
	if n := d.Metric("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v volumes are stale after the outage", n)
	}
	if events := c.eventsOf(t, "f02"); len(events) > 0 {
		t.Errorf("events: %q", events)
	}
	stop()
	unpublish(t, d, p, "ssh")
	return fmt.Sprintf("noticed after %s, followed %s after its end", seconds(noticed), seconds(took))
}

func restartWithoutAPIServer(t *testing.T, c *cluster) string {
	const volumes = 200
	outage := 20 * time.Second
	if torture() {
		outage = 5 * time.Minute
	}
	d, proxy := c.startBehind(t)
	m := c.manyVolumes(t, d, "f03", volumes)
	one := ssh("secretName", "f03-0")
	gone, late := c.pod(t, "f03-gone", one), c.pod(t, "f03-new", one)
	if _, err := d.Publish(deadline(t), gone, one); err != nil {
		t.Fatal(err)
	}

	proxy.Cut()
	away := time.Now()
	d.Kill()
	d.StartAgain()
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := d.Get(path); status != 200 {
			t.Errorf("%s without an API server: %d %s", path, status, body)
		}
	}
	if n := d.Metric("fsuser_volumes"); n != volumes+1 {
		t.Errorf("%v volumes were taken up, want %d", n, volumes+1)
	}
	unpublish(t, d, gone, "ssh")
	m.each(t, func(name string) error { // Kubelet does this after its own restart.
		_, err := d.Publish(deadline(t), m.pods[name], ssh("secretName", name))
		return err
	})
	if _, err := d.Publish(deadline(t), late, one); status.Code(err) != codes.Unavailable {
		t.Errorf("a new volume: %v", err)
	}
	nothingOf(t, d, late)
	m.show(t, time.Second, "before")
	m.update(t, "after")
	testkit.Eventually(t, converged, "all to be stale", func() bool { return d.Metric("fsuser_stale_volumes") == volumes })
	time.Sleep(time.Until(away.Add(outage))) // the length of the fault
	m.show(t, time.Second, "before")
	dialled, asked := proxy.Connections(), proxy.Asked()

	proxy.Heal()
	back := time.Now()
	m.show(t, converged, "after")
	took := time.Since(back)
	testkit.Eventually(t, converged, "none to be stale", func() bool { return d.Metric("fsuser_stale_volumes") == 0 })
	var requests []faultproxy.Request
	for _, r := range proxy.Requests()[asked:] {
		if strings.HasSuffix(r.URL.Path, "/secrets") {
			requests = append(requests, r)
		}
	}
	peak := 0
	for i, first := range requests {
		n := 0
		for _, r := range requests[i:] {
			if r.At.Sub(first.At) < time.Second {
				n++
			}
		}
		peak = max(peak, n)
	}
	t.Logf("outage of %s: %d connections tried; after it %d requests, at most %d in a second; all followed in %v",
		seconds(outage), dialled, len(requests), peak, took)
	if len(requests) > volumes+volumes/10 {
		t.Errorf("%d requests after the outage for %d volumes, want one each", len(requests), volumes)
	}
	if peak > volumes/2 {
		t.Errorf("%d requests in one second after the outage, want them spread", peak)
	}
	if events := c.eventsOf(t, "f03"); len(events) > 0 {
		t.Errorf("%d events for one outage: %.200q", len(events), events)
	}
	m.Driver = d
	m.unpublish(t)
	nothingAtAll(t, d)
	return fmt.Sprintf("%d volumes, away for %s: all current %s after its end, with %d requests, at most %d in a second",
		volumes, seconds(outage), seconds(took), len(requests), peak)
}

func watchesExpire(t *testing.T, c *cluster) string {
	const volumes = 20
	d, proxy := c.startBehind(t)
	m := c.manyVolumes(t, d, "f04", volumes)
	testkit.Eventually(t, converged, "the watches", func() bool { return proxy.Watches() == volumes })
	files := map[string]string{}
	for _, name := range m.names {
		files[name] = link(t, m.Target(pod(name), "ssh"))
	}
	asked := proxy.Asked()
	proxy.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		// Every requested version is too old.
		return r.URL.Query().Get("resourceVersion") != "" &&
			faultproxy.Status(410, metav1.StatusReasonExpired, "too old resource version: 1 (2)")(w, r)
	})
	if n := proxy.Say(faultproxy.ErrorEvent(410, metav1.StatusReasonExpired,
		"too old resource version: 1 (2)")); n != volumes {
		t.Errorf("%d watches were told", n)
	}
	testkit.Eventually(t, converged, "the watches to end and to come again", func() bool {
		return proxy.Asked() >= asked+volumes && proxy.Watches() == volumes
	})
	proxy.Answer(nil)
	m.update(t, "after")
	m.show(t, converged, "after")
	requests := proxy.Asked() - asked
	if requests > 3*volumes {
		t.Errorf("%d requests for %d volumes, want at most 3 each", requests, volumes)
	}
	for _, name := range m.names {
		// The files have shown one version after the other: "before", "after", and nothing in between.
		if !strings.HasPrefix(files[name], "..") || link(t, m.Target(pod(name), "ssh")) == files[name] {
			t.Errorf("%s shows the same generation", name)
		}
	}
	testkit.Eventually(t, converged, "the log to have each refresh", func() bool {
		return strings.Count(d.Log(), `"Refreshed"`) >= volumes
	})
	m.unpublish(t)
	if log := d.Log(); strings.Count(log, `"Refreshed"`) != volumes || strings.Contains(log, "can't be read") {
		t.Errorf("%d refreshes, want %d and no failure", strings.Count(log, `"Refreshed"`), volumes)
	}
	return fmt.Sprintf("%d watches: %d requests", volumes, requests)
}

func requiredKeyGoes(t *testing.T, c *cluster) string {
	const changes = 50
	c.secret(t, "f07", map[string]string{"a": "0", "b": "0"})
	d := c.start(t)
	p, v := c.describe(t, secretVolume("f07", false, items("a", "a", "b", "dir/b")...))
	dir, stop := publish(t, d, p, v)

	// A reader of one generation sees one version.
	var looks atomic.Int64
	reading, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for reading.Err() == nil {
			generation, err := os.Readlink(filepath.Join(dir, "..data"))
			if err != nil {
				t.Errorf("..data: %v", err)
				return
			}
			a, errA := os.ReadFile(filepath.Join(dir, generation, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, generation, "dir/b"))
			if errA != nil || errB != nil {
				continue // replaced in the meantime
			}
			if looks.Add(1); string(a) != string(b) {
				t.Errorf("a is %q and b is %q", a, b)
			}
		}
	})
	for i := range changes {
		text := fmt.Sprint(i + 1)
		c.update(t, "f07", map[string]string{"a": text, "b": text})
		holds(t, filepath.Join(dir, "a"), text)
	}
	end()
	running.Wait()

	c.update(t, "f07", map[string]string{"a": "without b"})
	testkit.Eventually(t, converged, "the volume to be stale",
		func() bool { return d.Metric("fsuser_stale_volumes") == 1 })
	if e := c.event(t, p, "VolumeRefreshFailed"); !strings.Contains(e.Message, `has no key "b"`) {
		t.Errorf("the event does not name the key: %s", e.Message)
	}
	holds(t, filepath.Join(dir, "a"), fmt.Sprint(changes))
	holds(t, filepath.Join(dir, "dir/b"), fmt.Sprint(changes))
	next, nextVolume := c.describe(t, secretVolume("f07", false, items("b", "b")...))
	if _, err := d.Publish(deadline(t), next, nextVolume); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a new volume without its key: %v", err)
	}
	c.update(t, "f07", map[string]string{"a": "both", "b": "both", "c": "not asked for"})
	holds(t, filepath.Join(dir, "dir/b"), "both")
	stop()
	unpublish(t, d, p, "ssh")
	return fmt.Sprintf("%d changes, %d looks in between", changes, looks.Load())
}

func objectsOfAnotherKind(t *testing.T, c *cluster) string {
	ctx := context.Background()
	d := c.start(t)
	secrets, configMaps := c.CoreV1().Secrets(namespace), c.CoreV1().ConfigMaps(namespace)
	remake := func(s *corev1.Secret) {
		t.Helper()
		if err := secrets.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := secrets.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// The type changes.
	c.secret(t, "f26", map[string]string{"k": "opaque"})
	p := pod("f26")
	dir, stop := publish(t, d, p, ssh("secretName", "f26"))
	typed := secretOf("f26", "of a type")
	typed.Type = "example.com/key"
	remake(typed)
	holds(t, filepath.Join(dir, "k"), "of a type")

	// The value moves from data to binaryData.
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "f26"}, Data: map[string]string{"k": "text", "stays": "s"}}
	if _, err := configMaps.Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { configMaps.Delete(ctx, "f26", metav1.DeleteOptions{}) })
	ofMap := pod("f26-map")
	mapDir, stopMap := publish(t, d, ofMap, ssh("configMapName", "f26"))
	cm.Data, cm.BinaryData = map[string]string{"stays": "s"}, map[string][]byte{"k": {0, 0xff}}
	if _, err := configMaps.Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(mapDir, "k"), "\x00\xff")
	holds(t, filepath.Join(mapDir, "stays"), "s")

	// The object is immutable, so it is not watched. The next subscriber causes a new read, for all subscribers.
	fixed := secretOf("f26", "immutable")
	yes := true
	fixed.Immutable = &yes
	remake(fixed)
	holds(t, filepath.Join(dir, "k"), "immutable")
	fixed = secretOf("f26", "made anew")
	remake(fixed)
	next := pod("f26-next")
	nextDir, stopNext := publish(t, d, next, ssh("secretName", "f26"))
	holds(t, filepath.Join(nextDir, "k"), "made anew")
	holds(t, filepath.Join(dir, "k"), "made anew")
	// The object is not immutable any more, so it is watched.
	c.update(t, "f26", map[string]string{"k": "changed"})
	holds(t, filepath.Join(dir, "k"), "changed")
	for _, s := range []func(){stop, stopMap, stopNext} {
		s()
	}
	for _, p := range []kubelet.Pod{p, ofMap, next} {
		unpublish(t, d, p, "ssh")
	}
	return "type, binaryData, immutable"
}

// right is the driver's right to read the Secret f27.
type right struct {
	take func() error
	// give restores the right, and returns a pod that is created then.
	give func() (kubelet.Pod, error)
	// words are the remedy in the messages to pods.
	words string
}

func noRole(t *testing.T, c *cluster) string {
	ctx := context.Background()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list", "watch"}},
	}}
	// The right to write Events stays.
	events := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "events"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	}}
	c = c.in(t, "f27")
	bind := func(role *rbacv1.Role) error {
		_, err := c.RbacV1().RoleBindings(c.namespace).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		}, metav1.CreateOptions{})
		return err
	}
	for _, r := range []*rbacv1.Role{role, events} {
		if _, err := c.RbacV1().Roles(c.namespace).Create(ctx, r, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := bind(r); err != nil {
			t.Fatal(err)
		}
	}
	return refused(t, c, right{
		take: func() error {
			return c.RbacV1().RoleBindings(c.namespace).Delete(ctx, role.Name, metav1.DeleteOptions{})
		},
		give:  func() (kubelet.Pod, error) { return c.pod(t, "f27-next", ssh("secretName", "f27")), bind(role) },
		words: "kubectl -n f27 create rolebinding fsuser-csi",
	})
}

// noImpersonation withdraws the right to act as the node from a service account of its own, because other drivers use
// that of the manifest.
func noImpersonation(t *testing.T, c *cluster) string {
	ctx := context.Background()
	c = c.in(t, "f27-impersonation")
	var err error
	if c.credentials, err = nodeaccess.Config(ctx, c.ControlPlane, c, "f27"); err != nil {
		t.Fatal(err)
	}
	bind := func(role string) error {
		_, err := c.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "f27-" + role},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: nodeaccess.System, Name: "f27"}},
		}, metav1.CreateOptions{})
		return err
	}
	for _, role := range []string{nodeaccess.Role, nodeaccess.EventsRole} {
		if err := bind(role); err != nil {
			t.Fatal(err)
		}
	}
	return refused(t, c, right{
		take: func() error {
			return c.RbacV1().ClusterRoleBindings().Delete(ctx, "f27-"+nodeaccess.Role, metav1.DeleteOptions{})
		},
		give: func() (kubelet.Pod, error) {
			return c.pod(t, "f27-next", ssh("secretName", "f27")), bind(nodeaccess.Role)
		},
		words: "the driver may not act as its node",
	})
}

// noReference deletes the only pod of the node that declares the Secret, while kubelet still has the pod's volume.
func noReference(t *testing.T, c *cluster) string {
	c = c.in(t, "f27-reference")
	return refused(t, c, right{
		take:  func() error { return nodeaccess.DeletePod(context.Background(), c, c.namespace, "f27") },
		give:  func() (kubelet.Pod, error) { return c.pod(t, "f27-next", ssh("secretName", "f27")), nil },
		words: "the pod must declare the object",
	})
}

// in returns the cluster with another namespace, which it creates.
func (c *cluster) in(t *testing.T, namespace string) *cluster {
	t.Helper()
	other := *c
	other.namespace = namespace
	if err := nodeaccess.MakeNamespace(context.Background(), c, namespace); err != nil {
		t.Fatal(err)
	}
	return &other
}

// awaitRefusal waits until the API server would refuse a new watch of a Secret. The API server learns of the change
// with a watch, and caches for ten seconds who may act as a node.
func (c *cluster) awaitRefusal(t *testing.T, secret string) {
	t.Helper()
	config := rest.CopyConfig(c.credentials)
	if c.access == "node" {
		config.Impersonate.UserName = "system:node:" + nodeaccess.Node
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, converged, "the API server to refuse", func() bool {
		w, err := client.CoreV1().Secrets(c.namespace).Watch(t.Context(),
			metav1.SingleObject(metav1.ObjectMeta{Name: secret}))
		if err == nil {
			w.Stop()
		}
		return apierrors.IsForbidden(err)
	})
}

func refused(t *testing.T, c *cluster, r right) string {
	v := ssh("secretName", "f27")
	c.secret(t, "f27", map[string]string{"k": "before"})
	d, proxy := c.startBehind(t)
	p := c.pod(t, "f27", v)
	// This pod is from the time without the right, and nothing is declared for it.
	early := kubelet.Pod{Namespace: c.namespace, Name: "f27-early", UID: "f27-early-6f0a3c1e-0001"}
	var dir string
	var stop func()
	// The API server learns of a binding with a watch.
	testkit.Eventually(t, converged, "the right to read", func() bool {
		target, err := d.Publish(deadline(t), p, v)
		if err == nil {
			dir, stop = testkit.AsContainer(t, target)
		}
		return err == nil
	})

	if err := r.take(); err != nil {
		t.Fatal(err)
	}
	c.awaitRefusal(t, "f27") // before the cut, because the pauses between refused watches grow
	testkit.Eventually(t, converged, "the refusal", func() bool {
		proxy.Say(nil) // An open watch continues until its end.
		return d.Metric("fsuser_stale_volumes") == 1
	})
	if e := c.event(t, p, "VolumeRefreshFailed"); !strings.Contains(e.Message, "forbidden") ||
		!strings.Contains(e.Message, r.words) {
		t.Errorf("the event does not say why, or not what to do: %s", e.Message)
	}
	if _, body := d.Get("/metrics"); !strings.Contains(body,
		`fsuser_volume_failures_total{operation="refresh",reason="forbidden"} 1`) {
		t.Error("the metrics do not have one refresh that was forbidden")
	}
	if table := d.Status(); !strings.Contains(table, staleText) || !strings.Contains(table, "forbidden") {
		t.Errorf("status:\n%s", table)
	}
	asked := proxy.Asked()
	since := time.Now()
	for _, v := range []kubelet.Volume{v, ssh("secretName", "f27", "optional", "true")} {
		if _, err := d.Publish(deadline(t), early, v); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a new volume: %v", err)
		}
		nothingOf(t, d, early)
	}
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Errorf("republish: %v", err)
	}
	time.Sleep(time.Until(since.Add(15 * time.Second))) // to count the requests in this time
	// There are pauses of 0.1 s, 0.3 s, 0.9 s, 2.7 s, 8.1 s and more, and two publishes.
	requests, pods := proxy.Asked()-asked, 0
	for _, request := range proxy.Requests()[asked:] {
		if strings.Contains(request.URL.Path, "/pods/") {
			pods++
		}
	}
	// Each publish waits for a moment until the Node authorizer knows the pod.
	if requests-pods > 7 || pods > 2*4 {
		t.Errorf("%d requests in 15 s, of which %d are for the pod; want a handful", requests, pods)
	}
	holds(t, filepath.Join(dir, "k"), "before")

	c.update(t, "f27", map[string]string{"k": "after"})
	next, err := r.give()
	if err != nil {
		t.Fatal(err)
	}
	granted := time.Now()
	// A new subscriber causes a request at once, and all subscribers get the result.
	var nextStop func()
	testkit.Eventually(t, converged, "a new pod to get the right that was given back", func() bool {
		target, err := d.Publish(deadline(t), next, v)
		if err == nil {
			_, nextStop = testkit.AsContainer(t, target)
		}
		return err == nil
	})
	holds(t, filepath.Join(dir, "k"), "after")
	noticed := time.Since(granted)
	if noticed > 5*time.Second {
		t.Errorf("the right that was given back was noticed after %v", noticed)
	}
	c.event(t, p, "VolumeRefreshRecovered")
	stop()
	nextStop()
	unpublish(t, d, p, "ssh")
	unpublish(t, d, next, "ssh")
	return fmt.Sprintf("%d requests in 15 s; a right that is given back is noticed with the next pod, after %s", requests,
		seconds(noticed))
}

func swallowed(t *testing.T, c *cluster) string {
	c.secret(t, "f28", map[string]string{"k": "before"})
	d, proxy := c.startBehind(t)
	v := ssh("secretName", "f28")
	p, late := pod("f28"), pod("f28-late")
	dir, stop := publish(t, d, p, v)
	connections := proxy.Connections()
	proxy.Stall()
	stalled := time.Now()
	c.update(t, "f28", map[string]string{"k": "after"})
	// The driver can't notice the fault yet. A new pod on a node that watches the object starts with the last known
	// content.
	lateDir, lateStop := publish(t, d, late, v)
	if text, err := os.ReadFile(filepath.Join(lateDir, "k")); err != nil || string(text) != "before" {
		t.Errorf("the new pod starts with %q, %v", text, err)
	}
	// HTTP/2 sends a ping after 30 s without data, and waits 15 s for the answer (k8s.io/apimachinery/pkg/util/net).
	testkit.Eventually(t, 90*time.Second, "the driver to give up the connection",
		func() bool { return proxy.Connections() > connections })
	noticed := time.Since(stalled)
	if noticed > 60*time.Second {
		t.Errorf("the driver noticed after %v", noticed)
	}
	testkit.Eventually(t, time.Minute, "both volumes to be stale",
		func() bool { return d.Metric("fsuser_stale_volumes") == 2 })
	for _, p := range []kubelet.Pod{p, late} {
		if now := statusOf(t, d, p); !strings.Contains(now.Stale, "can't be read now") {
			t.Errorf("the status of %s is %+v", p.Name, now)
		}
	}
	dirs := []string{dir, lateDir}
	for _, dir := range dirs {
		holds(t, filepath.Join(dir, "k"), "before")
	}
	proxy.Heal()
	healed := time.Now()
	for _, dir := range dirs {
		holds(t, filepath.Join(dir, "k"), "after")
	}
	took := time.Since(healed)
	if took > converged {
		t.Errorf("the files followed %v after the network was back", took)
	}
	awaitStale(t, d, 0)
	stop()
	lateStop()
	unpublish(t, d, p, "ssh")
	unpublish(t, d, late, "ssh")
	return fmt.Sprintf("noticed after %s, followed %s after its end", seconds(noticed), seconds(took))
}

// oldReplica simulates one of several API servers that lags behind: it answers from its cache if any version is
// allowed, and reports that a later version is too large. It gets the newest version from etcd if the request requires
// it.
func oldReplica(t *testing.T, c *cluster) string {
	ctx := context.Background()
	c.secret(t, "f29", map[string]string{"k": "old"})
	old, err := c.CoreV1().Secrets(namespace).Get(ctx, "f29", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, proxy := c.startBehind(t)
	p := pod("f29")
	dir, stop := publish(t, d, p, ssh("secretName", "f29"))
	c.update(t, "f29", map[string]string{"k": "new"})
	holds(t, filepath.Join(dir, "k"), "new")
	generation := link(t, dir)

	var refusals, fromCache atomic.Int64
	proxy.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		query := r.URL.Query()
		switch version := query.Get("resourceVersion"); {
		case !strings.HasSuffix(r.URL.Path, "/secrets") || version == "":
			return false
		case version == "0":
			fromCache.Add(1)
			return faultproxy.Protobuf(func(*http.Request) []byte { return faultproxy.Event("ADDED", old) })(w, r)
		default:
			refusals.Add(1)
			return faultproxy.TooLarge(w, r)
		}
	})
	testkit.Eventually(t, converged, "the old replica to be asked twice", func() bool {
		proxy.Say(nil)
		return refusals.Load() >= 2
	})
	if text, err := os.ReadFile(filepath.Join(dir, "k")); err != nil || string(text) != "new" ||
		link(t, dir) != generation {
		t.Errorf("the files went back: %q, %v", text, err)
	}
	if n := fromCache.Load(); n > 0 {
		t.Errorf("%d requests would have taken any version, after one was known", n)
	}
	c.update(t, "f29", map[string]string{"k": "newer"})
	proxy.Answer(nil)
	holds(t, filepath.Join(dir, "k"), "newer")
	stop()
	unpublish(t, d, p, "ssh")
	return fmt.Sprintf("%d requests to an API server that is behind", refusals.Load())
}

// TestAPIServerRestarts restarts a real API server. During its start it refuses requests that it will allow a moment
// later, and neither its new cache nor etcd has the versions from which the watches continue.
func TestAPIServerRestarts(t *testing.T) {
	nothingLeft(t)
	c := startCluster(t)
	t.Run("with --access=service-account", func(t *testing.T) { apiServerRestarts(t, c) })
	t.Run(strings.TrimPrefix(asNode, ", "), func(t *testing.T) { apiServerRestarts(t, c.asNode(t)) })
}

func apiServerRestarts(t *testing.T, c *cluster) {
	const volumes = 50
	d, proxy := c.startBehind(t)
	m := c.manyVolumes(t, d, "restarts", volumes)
	var slowest time.Duration
	var requests int
	var away time.Duration
	rounds := 1
	if torture() {
		rounds = 5
	}
	for i := range rounds {
		text := fmt.Sprint("round ", i)
		m.update(t, text) // makes newer versions
		m.show(t, converged, text)
		asked, stopped := proxy.Asked(), time.Now()
		if err := c.StopAPIServer(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := c.Compact(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := c.StartAPIServer(deadline(t)); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		away = max(away, back.Sub(stopped))
		text += ", after the restart"
		m.update(t, text)
		m.show(t, converged, text)
		slowest = max(slowest, time.Since(back))
		requests = max(requests, proxy.Asked()-asked)
	}
	if n := d.Metric("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v volumes are stale", n)
	}
	if events := c.eventsOf(t, "restarts"); len(events) > 0 {
		t.Errorf("%d events, among them %.300q", len(events), events)
	}
	// On a slow machine, the restart takes longer, and is an outage.
	if log := d.Log(); away < 8*time.Second &&
		(strings.Contains(log, "can't be read") || strings.Contains(log, "Not refreshed")) {
		t.Errorf("restarts of at most %v are in the log", away)
	}
	m.unpublish(t)
	nothingAtAll(t, d)
	reliability.Shown(t, "F-04", fmt.Sprintf("%d restarts of the API server, etcd compacted, under %d volumes: at most "+
		"%d requests each, all current %s after it was ready", rounds, volumes, requests, seconds(slowest)))
}

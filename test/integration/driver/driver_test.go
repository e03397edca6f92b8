// SPDX-License-Identifier: Apache-2.0

// Package driver tests the driver as a process: its real binary, the real kernel, a real kube-apiserver and etcd. Only
// kubelet is simulated.
package driver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

func TestDriverWithRealAPIServer(t *testing.T) {
	c := shared
	for _, test := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"a Secret for uid 1000 is published, refreshed, survives SIGKILL of the driver, and goes", life},
		{"the same request 100 times leaves one mount with the same id", manyTimes},
		{"bad requests get their code, and leave nothing", badRequests},
		{"an optional Secret that is created later appears", optional},
		{"a Secret that is deleted leaves the files, one that is made anew replaces them", deletedAndRecreated},
		{"a volume of the pod describes items, nested paths and modes; attributes give a file an owner of its own",
			describedByAVolume},
		{"a projected volume joins a Secret, a ConfigMap and the pod's labels, and follows each", severalSources},
		{"nodePublishSecretRef works without the API server and is refreshed by a republish", requestSecrets},
		{"refresh off keeps what was published", refreshOff},
		{"the API server goes away, the driver restarts, and nothing is lost", outage},
		{"the right to read is taken away and given back", rightsComeAndGo},
		{"uid absent is the common runAsUser of the pod's containers", ownerOfThePod},
		{"the pod's events and the status tell what is wrong and that it is over", eventsAndStatus},
		{"health, readiness and metrics", health},
		{"docs/metrics.md has the metrics, and they have the form that Prometheus recommends", metrics},
		{"hostile requests are refused and leave nothing", hostilePublish},
		{"hostile volumes of a pod are refused and leave nothing", hostileVolumes},
		{"hostile targets are refused and left alone", hostileTargets},
		{"hostile unpublishes take nothing away, harmless ones succeed", hostileUnpublish},
		{"what is just allowed works", acceptedEdges},
		{"more than the limits is refused", tooMuch},
		{"one pod can't take all watches of the node", greedyPod},
		{"without a descriptor left a call is refused, and the next one has what is freed", tooManyDescriptors},
		{"calls that overtake each other", callsThatOvertake},
		{"no secret leaks, at any level of the log", nothingLeaks},
		{"no secret leaks from an answer that is an error", answersLeakNothing},
		{"no switch of a library makes it log secrets", switchesOfLibraries},
	} {
		t.Run(test.name, func(t *testing.T) {
			nothingLeft(t)
			test.run(t, c)
		})
	}
}

func (c *cluster) start(t *testing.T, args ...string) *testkit.Driver {
	t.Helper()
	return testkit.StartDriver(t, c.binary, append(args, "--access="+c.access, "--kubeconfig="+c.kubeconfig)...)
}

// secret creates a Secret, and deletes it when t ends.
func (c *cluster) secret(t *testing.T, name string, data map[string]string) *corev1.Secret {
	t.Helper()
	s, err := c.CoreV1().Secrets(c.namespace).Create(context.Background(),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CoreV1().Secrets(c.namespace).Delete(context.Background(), name, metav1.DeleteOptions{}) })
	return s
}

// deletePod deletes a pod at once, because no kubelet would end it.
func (c *cluster) deletePod(name string) {
	nodeaccess.DeletePod(context.Background(), c, c.namespace, name)
}

func (c *cluster) update(t *testing.T, name string, data map[string]string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
	if _, err := c.CoreV1().Secrets(c.namespace).Update(context.Background(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func pod(name string) kubelet.Pod {
	return kubelet.Pod{Namespace: namespace, Name: name, UID: name + "-6f0a3c1e-0001"}
}

// publish publishes a volume, and returns it as a container sees it. It fails the test if that fails.
func publish(t *testing.T, d *testkit.Driver, p kubelet.Pod, v kubelet.Volume) (dir string, stop func()) {
	t.Helper()
	target, err := d.Publish(deadline(t), p, v)
	if err != nil {
		t.Fatal(err)
	}
	return testkit.AsContainer(t, target)
}

func unpublish(t *testing.T, d *testkit.Driver, p kubelet.Pod, volume string) {
	t.Helper()
	if err := d.Unpublish(deadline(t), p, volume); err != nil {
		t.Fatal(err)
	}
	if err := d.RemovePod(p); err != nil {
		t.Fatal(err)
	}
}

// deadline returns a context with the timeout of kubelet's calls.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// holds waits until the file has the text.
func holds(t *testing.T, path, text string) {
	t.Helper()
	testkit.Eventually(t, time.Minute, fmt.Sprintf("%q in %s", text, filepath.Base(path)), func() bool {
		b, err := os.ReadFile(path)
		return err == nil && string(b) == text
	})
}

// ssh returns a volume with these attributes (key, value, ...), and a uid. Without a uid, the driver would read the
// pod, which does not exist in most tests.
func ssh(attributes ...string) kubelet.Volume {
	v := kubelet.Volume{Name: "ssh", Attributes: map[string]string{"uid": "1000"}}
	for i := 0; i < len(attributes); i += 2 {
		v.Attributes[attributes[i]] = attributes[i+1]
	}
	return v
}

func life(t *testing.T, c *cluster) {
	const rounds = 51
	c.secret(t, "keys", map[string]string{"id_rsa": "version 0"})
	d := c.start(t)
	before := testkit.MountTable(t)
	p := pod("life")
	dir, stop := publish(t, d, p, ssh("secretName", "keys", "uid", "1000", "gid", "1000", "mode", "0600"))
	file := filepath.Join(dir, "id_rsa")

	if b, err := testkit.ReadAs(1000, 1000, file); err != nil || string(b) != "version 0" {
		t.Errorf("uid 1000 reads %q, %v", b, err)
	}
	if _, err := testkit.ReadAs(1001, 1001, file); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("uid 1001 must be denied, but: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Uid != 1000 || st.Gid != 1000 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("the file is %d:%d %#o, %v", st.Uid, st.Gid, st.Mode, err)
	}

	var updates, latencies []time.Duration
	// A volume is written at most every 100 ms.
	pause := time.NewTicker(110 * time.Millisecond)
	defer pause.Stop()
	for i := 1; i <= rounds; i++ {
		<-pause.C
		text := fmt.Sprint("version ", i)
		begun := time.Now()
		c.update(t, "keys", map[string]string{"id_rsa": text})
		updated := time.Now()
		updates = append(updates, updated.Sub(begun))
		holds(t, file, text)
		latencies = append(latencies, time.Since(updated))
	}
	slices.Sort(updates)
	slices.Sort(latencies)
	update, median := updates[rounds/2], latencies[rounds/2]
	t.Logf("update returned -> new bytes in the container: median %v, max %v, n=%d; an update: median %v", median,
		latencies[rounds-1], rounds, update)

	d.Kill()
	if b, err := testkit.ReadAs(1000, 1000, file); err != nil || string(b) != fmt.Sprint("version ", rounds) {
		t.Errorf("after the driver was killed uid 1000 reads %q, %v", b, err)
	}
	c.update(t, "keys", map[string]string{"id_rsa": "changed while the driver was away"})
	d.StartAgain()
	holds(t, file, "changed while the driver was away")
	c.update(t, "keys", map[string]string{"id_rsa": "changed after"})
	holds(t, file, "changed after")

	stop()
	unpublish(t, d, p, "ssh")
	if after := testkit.MountTable(t); after != before {
		t.Errorf("the mount table is not as before.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if records := d.Records(); len(records) > 0 {
		t.Errorf("records are left: %q", records)
	}
	if n := d.Metric("fsuser_watched_objects"); n != 0 {
		t.Errorf("%v objects are still watched", n)
	}
}

func manyTimes(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"id_rsa": "text"})
	d := c.start(t)
	p, v := pod("many"), ssh("secretName", "keys", "uid", "1000")
	target, err := d.Publish(deadline(t), p, v)
	if err != nil {
		t.Fatal(err)
	}
	first := testkit.MountsBelow(t, target)
	for range 99 {
		if _, err := d.Publish(deadline(t), p, v); err != nil {
			t.Fatal(err)
		}
	}
	// The first field of a line is the mount id.
	if now := testkit.MountsBelow(t, target); len(now) != 1 || !slices.Equal(now, first) {
		t.Errorf("after 100 publishes the mounts are %q; after one they were %q", now, first)
	}
	unpublish(t, d, p, "ssh")
	reliability.Shown(t, "F-12", "100 publishes: one mount, with the same id")
}

func badRequests(t *testing.T, c *cluster) {
	const canary = "the secret value"
	c.secret(t, "keys", map[string]string{"id_rsa": canary})
	d := c.start(t, "--max-volume-bytes=1000")
	c.secret(t, "big", map[string]string{"k": strings.Repeat("x", 1001)})
	healthy := pod("healthy")
	dir, stop := publish(t, d, healthy, ssh("secretName", "keys", "uid", "1000"))
	before, records := testkit.MountTable(t), d.Records()
	missingKey, missingKeyVolume := c.describe(t, secretVolume("keys", false, items("id_dsa", "id_dsa")...))

	for _, test := range []struct {
		name string
		pod  kubelet.Pod
		v    kubelet.Volume
		code codes.Code
		says []string
	}{
		{"a Secret that is not there", pod("bad"), ssh("secretName", "nowhere"), codes.NotFound,
			[]string{`Secret "default/nowhere"`, "not found"}},
		{"a Secret in a namespace that the driver may not read",
			kubelet.Pod{Namespace: "kube-system", Name: "bad", UID: "bad-1"},
			ssh("secretName", "keys"), codes.PermissionDenied, []string{`Secret "kube-system/keys"`, "forbidden", user}},
		{"forbidden is not missing, not even for an optional Secret",
			kubelet.Pod{Namespace: "kube-system", Name: "bad", UID: "bad-1"},
			ssh("secretName", "keys", "optional", "true"), codes.PermissionDenied, []string{"forbidden"}},
		{"a key that is not there", missingKey, missingKeyVolume, codes.FailedPrecondition,
			[]string{`Secret "default/keys"`, `"id_dsa"`, `volume "described"`, "optional"}},
		{"a volume of a pod that is not there", pod("bad"), ssh("volume", "keys"), codes.NotFound,
			[]string{`Pod "default/bad"`, "not found"}},
		{"a volume that the pod does not have", missingKey, ssh("volume", "keys"), codes.InvalidArgument,
			[]string{"volumeAttributes[volume]", "keys"}},
		{"a PATH that is no file", pod("bad"), ssh("secretName", "keys", "uid/id_dsa", "0"), codes.FailedPrecondition,
			[]string{`"id_dsa"`, "PATH"}},
		{"more bytes than a volume may hold", pod("bad"), ssh("secretName", "big"), codes.FailedPrecondition,
			[]string{"1001 bytes", "--max-volume-bytes"}},
		{"everything wrong at once", pod("bad"), kubelet.Volume{Name: "ssh", Writable: true, FSGroup: "-1",
			Attributes: map[string]string{"secretname": "keys", "uid": "root", "mode": "999", "optional": "yes"}},
			codes.InvalidArgument,
			[]string{"csi.readOnly: true", "fsGroup", "secretname", "secretName", "uid", "root", "mode", "999", "optional",
				"yes"}},
		{"the same volume with another owner", healthy, ssh("secretName", "keys", "uid", "1001"), codes.AlreadyExists,
			[]string{"other attributes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			target, err := d.Publish(deadline(t), test.pod, test.v)
			if got := status.Code(err); got != test.code {
				t.Fatalf("got %v, want %v: %v", got, test.code, err)
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error has the value of the secret in it: %v", err)
			}
			if test.pod != healthy {
				if _, err := os.Lstat(target); !os.IsNotExist(err) {
					t.Errorf("%s is left behind: %v", target, err)
				}
			}
		})
	}

	if now := testkit.MountTable(t); now != before {
		t.Errorf("the mount table is not as before:\n%s\nbefore:\n%s", now, before)
	}
	if now := d.Records(); !slices.Equal(now, records) {
		t.Errorf("the records are not as before: %q, before: %q", now, records)
	}
	if n := d.Metric("fsuser_watched_objects"); n != 1 {
		t.Errorf("%v objects are watched, want the healthy volume's alone", n)
	}
	if strings.Contains(d.Log(), canary) {
		t.Error("the log has the value of the secret in it")
	}
	holds(t, filepath.Join(dir, "id_rsa"), canary)
	stop()
	unpublish(t, d, healthy, "ssh")
}

func optional(t *testing.T, c *cluster) {
	d := c.start(t)
	p := pod("optional")
	dir, stop := publish(t, d, p, ssh("secretName", "later", "optional", "true", "uid", "1000"))
	if names := visible(t, dir); len(names) != 0 {
		t.Errorf("the volume of an absent optional Secret has %q", names)
	}
	c.secret(t, "later", map[string]string{"k": "here"})
	made := time.Now()
	holds(t, filepath.Join(dir, "k"), "here")
	appeared := time.Since(made)
	if appeared > 5*time.Second {
		t.Errorf("the files appeared %v after the object", appeared)
	}
	if err := c.CoreV1().Secrets(namespace).Delete(context.Background(), "later", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the files of the deleted optional Secret to go",
		func() bool { return len(visible(t, dir)) == 0 })
	stop()
	unpublish(t, d, p, "ssh")
	reliability.Shown(t, "F-06", "the files appear "+seconds(appeared)+" after the object")
}

func deletedAndRecreated(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "old"})
	d := c.start(t)
	p := pod("deleted")
	dir, stop := publish(t, d, p, ssh("secretName", "keys"))
	if err := c.CoreV1().Secrets(namespace).Delete(context.Background(), "keys", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the driver to notice the deletion",
		func() bool { return d.Metric("fsuser_stale_volumes") == 1 })
	holds(t, filepath.Join(dir, "k"), "old")
	c.secret(t, "keys", map[string]string{"k": "new"})
	holds(t, filepath.Join(dir, "k"), "new")
	testkit.Eventually(t, time.Minute, "the volume to be current",
		func() bool { return d.Metric("fsuser_stale_volumes") == 0 })

	// The same data in another object causes no write.
	generation := link(t, dir)
	if err := c.CoreV1().Secrets(namespace).Delete(context.Background(), "keys", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := c.CoreV1().Secrets(namespace).Create(context.Background(),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, StringData: map[string]string{"k": "new"}},
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the new object in the status", func() bool {
		table := d.Status()
		return strings.Contains(table, s.ResourceVersion) && strings.Contains(table, "current")
	})
	if link(t, dir) != generation {
		t.Error("the same data was written again")
	}
	stop()
	unpublish(t, d, p, "ssh")
	reliability.Shown(t, "F-05", "the same data, and other data")
}

func describedByAVolume(t *testing.T, c *cluster) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"a": "text"},
		BinaryData: map[string][]byte{"b": {0, 0xff}}}
	if _, err := c.CoreV1().ConfigMaps(namespace).Create(context.Background(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CoreV1().ConfigMaps(namespace).Delete(context.Background(), cm.Name, metav1.DeleteOptions{}) })
	d := c.start(t)
	source := configMapVolume("conf", false, items("a", "etc/conf.d/a.conf", "b", "b")...)
	source.ConfigMap.DefaultMode, source.ConfigMap.Items[1].Mode = ptr.To[int32](0o444), ptr.To[int32](0o400)
	p, v := c.describe(t, source, "uid", "70", "dirMode", "0750", "uid/b", "71", "gid/b", "72")
	v.FSGroup = "2000"
	dir, stop := publish(t, d, p, v)
	for path, want := range map[string]struct {
		data     string
		uid, gid uint32
		mode     uint32
	}{
		"etc/conf.d/a.conf": {"text", 70, 2000, unix.S_IFREG | 0o444},
		"b":                 {"\x00\xff", 71, 72, unix.S_IFREG | 0o400},
		"etc":               {"", 70, 2000, unix.S_IFDIR | 0o750},
		"etc/conf.d":        {"", 70, 2000, unix.S_IFDIR | 0o750},
		".":                 {"", 70, 2000, unix.S_IFDIR | 0o750},
	} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, path), &st); err != nil || st.Uid != want.uid || st.Gid != want.gid ||
			st.Mode != want.mode {
			t.Errorf("%s is %d:%d %#o, %v; want %d:%d %#o", path, st.Uid, st.Gid, st.Mode, err, want.uid, want.gid, want.mode)
		}
		if want.mode&unix.S_IFREG != 0 && want.mode&unix.S_IFDIR == 0 {
			if b, err := os.ReadFile(filepath.Join(dir, path)); err != nil || !bytes.Equal(b, []byte(want.data)) {
				t.Errorf("%s holds %q, %v", path, b, err)
			}
		}
	}
	stop()
	unpublish(t, d, p, "ssh")
}

func requestSecrets(t *testing.T, c *cluster) {
	d := c.start(t)
	p, v := pod("request"), ssh("uid", "1000")
	v.Secrets = map[string]string{"k": "first"}
	dir, stop := publish(t, d, p, v)
	holds(t, filepath.Join(dir, "k"), "first")
	v.Secrets = map[string]string{"k": "second"}
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "k"), "second")
	d.Kill()
	d.StartAgain()
	v.Secrets = map[string]string{"k": "third"}
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "k"), "third")
	stop()
	unpublish(t, d, p, "ssh")
}

func refreshOff(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "old"})
	d := c.start(t)
	fixed, follows := pod("fixed"), pod("follows")
	fixedDir, stop1 := publish(t, d, fixed, ssh("secretName", "keys", "refresh", "off"))
	if n := d.Metric("fsuser_watched_objects"); n != 0 {
		t.Errorf("%v objects are watched for a volume with refresh off", n)
	}
	followsDir, stop2 := publish(t, d, follows, ssh("secretName", "keys"))
	c.update(t, "keys", map[string]string{"k": "new"})
	holds(t, filepath.Join(followsDir, "k"), "new")
	if _, err := d.Publish(deadline(t), fixed, ssh("secretName", "keys", "refresh", "off")); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(fixedDir, "k"), "old")
	stop1()
	stop2()
	unpublish(t, d, fixed, "ssh")
	unpublish(t, d, follows, "ssh")
}

// outage includes H-096 (kubelet publishes a published volume again) and H-109 (the driver reports that it is healthy)
// of docs/hostile-inputs.md.
func outage(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "before"})
	d := c.start(t)
	p, gone := pod("outage"), pod("gone")
	v := ssh("secretName", "keys", "uid", "1000")
	dir, stop := publish(t, d, p, v)
	_, stopGone := publish(t, d, gone, v)

	if err := c.StopAPIServer(deadline(t)); err != nil {
		t.Fatal(err)
	}
	d.Kill()
	d.StartAgain()
	if status, body := d.Get("/healthz"); status != 200 {
		t.Errorf("without an API server the driver is unhealthy: %d %s", status, body)
	}
	holds(t, filepath.Join(dir, "k"), "before")
	// After its own restart, kubelet publishes published volumes again.
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Errorf("a volume that is whole could not be republished without the API server: %v", err)
	}
	if _, err := d.Publish(deadline(t), pod("new"), v); status.Code(err) != codes.Unavailable && err != nil {
		t.Errorf("a new volume without the API server: %v", err)
	} else if err == nil {
		t.Error("a new volume was published without the API server")
	}
	stopGone()
	unpublish(t, d, gone, "ssh")

	if err := c.StartAPIServer(deadline(t)); err != nil {
		t.Fatal(err)
	}
	c.update(t, "keys", map[string]string{"k": "after"})
	back := time.Now()
	holds(t, filepath.Join(dir, "k"), "after")
	t.Logf("after the API server's return the volume was current in %v", time.Since(back))
	stop()
	unpublish(t, d, p, "ssh")
}

func rightsComeAndGo(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "before"})
	d := c.start(t)
	p := pod("rights")
	dir, stop := publish(t, d, p, ssh("secretName", "keys"))
	if err := c.RbacV1().RoleBindings(namespace).Delete(context.Background(), "fsuser-csi",
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the API server to know that the right is gone", func() bool {
		review, err := c.AuthorizationV1().SubjectAccessReviews().Create(context.Background(),
			&authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "watch",
						Resource: "secrets"},
				},
			}, metav1.CreateOptions{})
		return err == nil && !review.Status.Allowed
	})
	// An open watch continues until its end, but a driver that starts has none.
	d.Kill()
	d.StartAgain()
	testkit.Eventually(t, time.Minute, "the volume to be stale",
		func() bool { return d.Metric("fsuser_stale_volumes") == 1 })
	holds(t, filepath.Join(dir, "k"), "before")
	c.update(t, "keys", map[string]string{"k": "after"})
	if err := c.bind(); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "k"), "after")
	stop()
	unpublish(t, d, p, "ssh")
}

func ownerOfThePod(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "text"})
	made := nodeaccess.Pod("seventy", kubelet.Volume{Name: "ssh", Attributes: map[string]string{"secretName": "keys"}})
	made.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](70)}
	p := c.create(t, made)
	d := c.start(t)
	dir, stop := publish(t, d, p, kubelet.Volume{Name: "ssh", Attributes: map[string]string{"secretName": "keys"}})
	file := filepath.Join(dir, "k")
	c.update(t, "keys", map[string]string{"k": "updated"})
	holds(t, file, "updated")
	if b, err := testkit.ReadAs(70, 70, file); err != nil || string(b) != "updated" {
		t.Errorf("uid 70 reads %q, %v", b, err)
	}
	d.Kill()
	d.StartAgain()
	c.update(t, "keys", map[string]string{"k": "after a restart"})
	holds(t, file, "after a restart")
	if b, err := testkit.ReadAs(70, 70, file); err != nil || string(b) != "after a restart" {
		t.Errorf("after a restart uid 70 reads %q, %v", b, err)
	}
	stop()
	unpublish(t, d, p, "ssh")
}

func severalSources(t *testing.T, c *cluster) {
	ctx := context.Background()
	c.secret(t, "keys", map[string]string{"k": "1"})
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf-of-sources"}, Data: map[string]string{"a": "text"}}
	if _, err := c.CoreV1().ConfigMaps(namespace).Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CoreV1().ConfigMaps(namespace).Delete(context.Background(), cm.Name, metav1.DeleteOptions{}) })
	fields := fieldsSource("pod/labels", "metadata.labels", "pod/name", "metadata.name")
	fields.DownwardAPI.Items = append(fields.DownwardAPI.Items, resourceFile("pod/memory", "limits.memory", "1Mi"))
	source := projectedVolume(secretSource("keys"), configMapSource(cm.Name, false, items("a", "conf/a")...), fields)
	p, v := c.describeIn(t, source, func(spec *corev1.PodSpec) {
		spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	}, "uid/conf/a", "7")
	relabel := func(label string) {
		t.Helper()
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, label)
		if _, err := c.CoreV1().Pods(namespace).Patch(ctx, p.Name, types.MergePatchType, patch,
			metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	relabel("web")
	d := c.start(t)
	dir, stop := publish(t, d, p, v)
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, want := range map[string]string{"k": "1", "conf/a": "text", "pod/labels": `app="web"`, "pod/name": p.Name,
		"pod/memory": "64"} {
		holds(t, file(name), want)
	}
	c.update(t, "keys", map[string]string{"k": "2"})
	holds(t, file("k"), "2")
	relabel("db")
	holds(t, file("pod/labels"), `app="db"`)
	d.Kill()
	cm.Data["a"] = "changed meanwhile"
	if _, err := c.CoreV1().ConfigMaps(namespace).Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.StartAgain()
	holds(t, file("conf/a"), "changed meanwhile")
	objects := fmt.Sprintf(`Secret "default/keys", ConfigMap "default/conf-of-sources", Pod "default/%s"`, p.Name)
	if table := d.Status(); !strings.Contains(table, objects) || !strings.Contains(table, "0644") {
		t.Errorf("the status does not show %s and 0644:\n%s", objects, table)
	}
	stop()
	unpublish(t, d, p, "ssh")
}

func eventsAndStatus(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"k": "the secret value"})
	d := c.start(t)
	p := pod("told")
	_, stop := publish(t, d, p, ssh("secretName", "keys", "uid", "1000"))
	if err := c.CoreV1().Secrets(namespace).Delete(context.Background(), "keys", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	event := c.event(t, p, "VolumeObjectMissing")
	if event.Type != "Warning" || event.InvolvedObject.UID != types.UID(p.UID) || event.Source.Host != "node-1" ||
		event.Count != 1 ||
		!strings.Contains(event.Message, `volume "ssh" stay as they are: Secret "default/keys": not found`) {
		t.Errorf("%+v", event)
	}
	if table := d.Status(); !strings.Contains(table, "default/told") || !strings.Contains(table, "1000:0 ") ||
		!strings.Contains(table, "stale for") {
		t.Errorf("status:\n%s", table)
	}
	c.secret(t, "keys", map[string]string{"k": "the secret value"})
	if event := c.event(t, p, "VolumeRefreshRecovered"); event.Type != "Normal" {
		t.Errorf("%+v", event)
	}
	table := d.Status()
	if !strings.Contains(table, "current") || strings.Contains(table, "the secret value") {
		t.Errorf("status:\n%s", table)
	}
	stop()
	unpublish(t, d, p, "ssh")
}

// event waits for an event of the pod with this reason.
func (c *cluster) event(t *testing.T, p kubelet.Pod, reason string) (found corev1.Event) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "the event "+reason, func() bool {
		events, err := c.CoreV1().Events(p.Namespace).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events.Items {
			if e.Reason == reason && e.InvolvedObject.Name == p.Name {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func health(t *testing.T, c *cluster) {
	d := c.start(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := d.Get(path); status != 200 || strings.TrimSpace(body) != "ok" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	_, body := d.Get("/metrics")
	for _, name := range []string{
		`fsuser_volume_operation_duration_seconds_count{operation="publish",outcome="ok"}`, "fsuser_volumes 0",
		"fsuser_watched_objects 0",
		"fsuser_stale_volumes 0", "fsuser_rpc_duration_seconds_count", "fsuser_max_volume_files 2048",
		"fsuser_max_message_bytes 4.194304e+06", "fsuser_pod_share_ratio 0.1",
		"process_resident_memory_bytes", `fsuser_build_info{goversion="` + runtime.Version() + `",revision="`,
	} {
		if !strings.Contains(body, name) {
			t.Errorf("/metrics has no %s", name)
		}
	}
}

// visible returns the names in a volume that do not belong to the layout.
func visible(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") {
			names = append(names, e.Name())
		}
	}
	return names
}

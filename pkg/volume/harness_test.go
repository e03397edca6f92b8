// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

func TestMain(m *testing.M) {
	testkit.RunInMountNamespace(m)
}

// logged is the log of the tests. A new harness empties it.
var logged, _ = testkit.CaptureLog(0)

const (
	namespace = "ns"
	// patience is the longest wait for an event. An event takes milliseconds.
	patience = 20 * time.Second
)

// ample are limits that no test reaches by accident.
var ample = Limits{Bytes: 4 << 20, Files: 2048, Volumes: 1000, NodeBytes: 1 << 30, Objects: 1000, PodShare: 100,
	NamespaceShare: 100}

// harness is a node with one driver: kubelet's directories, the records, a source of objects, and a Manager.
type harness struct {
	*Manager
	t testing.TB
	// root takes the place of kubelet's root directory. state holds the records.
	root, state string
	// fake is the source if the test chooses its answers. If fake is nil, the source is a source.Directory, which reads
	// the directory manifests.
	fake      *fakeSource
	manifests string
	directory *source.Directory

	registry  *prometheus.Registry
	configure []func(*Config)
	stop      func()
}

// newHarness returns a harness whose objects are manifests in a directory.
func newHarness(t testing.TB, configure ...func(*Config)) *harness {
	t.Helper()
	h := makeHarness(t, configure)
	h.manifests = t.TempDir()
	h.start()
	return h
}

// newFakeHarness returns a harness with a fakeSource.
func newFakeHarness(t testing.TB, configure ...func(*Config)) *harness {
	t.Helper()
	h := makeHarness(t, configure)
	h.fake = newFakeSource()
	h.start()
	return h
}

func makeHarness(t testing.TB, configure []func(*Config)) *harness {
	t.Helper()
	testkit.NothingLeft(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	h := &harness{
		t: t, root: filepath.Join(dir, "kubelet"), state: filepath.Join(dir, "state"), configure: configure,
	}
	must(t, os.Mkdir(h.root, 0o755))
	logged.Take()
	t.Cleanup(func() {
		h.end()
		if t.Failed() {
			t.Logf("the log:\n%s", logged.Text())
		}
		for _, line := range testkit.MountsBelow(t, dir) {
			if err := unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				t.Errorf("%v: %s", err, line)
			}
		}
	})
	return h
}

// start starts a driver, which has only the state that is on the machine.
func (h *harness) start() {
	h.t.Helper()
	features, err := tmpfs.Probe()
	must(h.t, err)
	records, err := record.Open(h.state)
	must(h.t, err)
	var src Source = h.fake
	if h.fake == nil {
		h.directory, err = source.NewDirectory(h.manifests)
		must(h.t, err)
		src = h.directory
	}
	h.registry = prometheus.NewRegistry()
	c := Config{
		Source: src, Records: records, Features: features, Limits: ample, Workers: 4,
		CollectEvery: time.Hour, CheckTarget: h.checkTarget, Metrics: h.registry,
	}
	for _, change := range h.configure {
		change(&c)
	}
	h.Manager, err = New(c)
	must(h.t, err)
}

// run makes the driver refresh volumes, until h.end.
func (h *harness) run() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	h.stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			h.t.Errorf("Run did not return within %v", patience)
		}
	}
}

// end ends the driver: its memory is gone, and the state on the machine stays.
func (h *harness) end() {
	if h.stop != nil {
		h.stop()
		h.stop = nil
	}
	if h.Manager != nil {
		h.queue.ShutDown()
		h.Manager = nil
	}
	if h.directory != nil {
		h.directory.Close()
		h.directory = nil
	}
	if h.fake != nil {
		h.fake.forget()
	}
}

// restart replaces the driver by a new process, which does not run yet.
func (h *harness) restart() {
	h.t.Helper()
	h.end()
	h.start()
	if err := h.Recover(h.t.Context()); err != nil {
		h.t.Fatalf("recover: %v", err)
	}
}

// loseRecords restarts the driver without its records.
func (h *harness) loseRecords() {
	h.t.Helper()
	for _, file := range h.recordFiles() {
		must(h.t, os.Remove(file))
	}
	h.restart()
}

func (h *harness) target(podUID, volume string) string {
	return filepath.Join(h.root, "pods", podUID, "volumes/kubernetes.io~csi", volume, "mount")
}

// checkTarget applies the rule of driver.Binding.CheckTarget, that id, pod and target belong together, to the ids of
// these tests.
func (h *harness) checkTarget(id, target, podUID string) error {
	if volume, ok := strings.CutPrefix(id, "csi-"); !ok || target != h.target(podUID, volume) {
		return fmt.Errorf("target %s is not that of %s in pod %s", target, id, podUID)
	}
	return nil
}

// request returns a request for a volume of a new pod, with pairs of attributes. It makes the directory and the pod,
// which exist before kubelet calls the driver. If the attributes name no object, the content comes with the request.
func (h *harness) request(name string, attrs ...string) Request {
	h.t.Helper()
	r := Request{
		ID: "csi-" + name, TargetPath: h.target("uid-"+name, name),
		Pod: Pod{Namespace: namespace, Name: "pod-" + name, UID: "uid-" + name},
	}
	m := map[string]string{}
	for i := 0; i < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	if m["secretName"] == "" && m["configMapName"] == "" && m["volume"] == "" {
		r.Secrets = map[string]string{"k": "from the request"}
	}
	r.Spec = parse(h.t, m, r.Secrets != nil)
	must(h.t, os.MkdirAll(filepath.Dir(r.TargetPath), 0o750))
	h.setPod(podOf(r))
	return r
}

func parse(t testing.TB, attrs map[string]string, withSecrets bool) attributes.Spec {
	t.Helper()
	spec, errs := attributes.Parse(attrs, withSecrets)
	must(t, errs.ToAggregate())
	return spec
}

// podOf returns the pod of a request, with a container that mounts the volume at /v.
func podOf(r Request) *corev1.Pod {
	name := newVolume(r).name()
	return &corev1.Pod{
		TypeMeta:   typeMeta("Pod"),
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: types.UID(r.Pod.UID)},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{{
				Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: attributes.Driver}},
			}},
			Containers: []corev1.Container{{
				Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: name, MountPath: "/v"}},
			}},
		},
	}
}

// describe gives the pod of a request the volume that the attribute "volume" names, and makes more changes to the pod.
func (h *harness) describe(r Request, described corev1.VolumeSource, changes ...func(*corev1.Pod)) {
	h.t.Helper()
	pod := podOf(r)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: r.Spec.Volume, VolumeSource: described})
	for _, change := range changes {
		change(pod)
	}
	h.setPod(pod)
}

// described returns a request for a volume with the attribute "volume", and more pairs of attributes. The pod has the
// described volume.
func (h *harness) described(name string, described corev1.VolumeSource, attrs ...string) Request {
	h.t.Helper()
	r := h.request(name, append([]string{"volume", "described"}, attrs...)...)
	h.describe(r, described)
	return r
}

// setPod creates or replaces a pod. When setPod returns, the source has the pod.
func (h *harness) setPod(pod *corev1.Pod) {
	h.t.Helper()
	if h.fake != nil {
		h.fake.setPod(pod)
		return
	}
	h.writeManifest("pod-"+pod.Name, pod)
	if h.directory == nil {
		return
	}
	testkit.Eventually(h.t, patience, "the directory of manifests to have the pod", func() bool {
		got, err := h.directory.Pod(h.t.Context(), pod.Namespace, pod.Name, string(pod.UID))
		return err == nil && equality.Semantic.DeepEqual(got.Spec, pod.Spec)
	})
}

// secretVolume returns a volume of type secret with items: pairs of a key and a path.
func secretVolume(name string, items ...string) corev1.VolumeSource {
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, Items: keysToPaths(items)}}
}

// projectedVolume returns a volume of type projected.
func projectedVolume(sources ...corev1.VolumeProjection) corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}
}

// secretProjection returns a Secret of a projected volume, with items: pairs of a key and a path.
func secretProjection(name string, items ...string) corev1.VolumeProjection {
	return corev1.VolumeProjection{Secret: &corev1.SecretProjection{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: keysToPaths(items),
	}}
}

func configMapProjection(name string, items ...corev1.KeyToPath) corev1.VolumeProjection {
	return corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items,
	}}
}

func keysToPaths(pairs []string) (items []corev1.KeyToPath) {
	for i := 0; i < len(pairs); i += 2 {
		items = append(items, corev1.KeyToPath{Key: pairs[i], Path: pairs[i+1]})
	}
	return items
}

// content is the data of an object.
type content map[string]string

func (c content) bytes() map[string][]byte {
	data := map[string][]byte{}
	for key, value := range c {
		data[key] = []byte(value)
	}
	return data
}

func secretRef(name string) source.Ref {
	return source.Ref{Kind: attributes.Secret, Namespace: namespace, Name: name}
}

func configMapRef(name string) source.Ref {
	return source.Ref{Kind: attributes.ConfigMap, Namespace: namespace, Name: name}
}

// secret sets the data of a Secret. When secret returns, the source has the data.
func (h *harness) secret(name string, c content) {
	h.t.Helper()
	if h.fake != nil {
		h.fake.set(secretRef(name), c)
		return
	}
	h.writeManifest(name, &corev1.Secret{
		TypeMeta:   typeMeta("Secret"),
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: c.bytes(),
	})
	h.directoryHas(name, func(data map[string][]byte, err error) bool {
		return err == nil && maps.EqualFunc(data, c, func(a []byte, b string) bool { return string(a) == b })
	})
}

func (h *harness) removeSecret(name string) {
	h.t.Helper()
	if h.fake != nil {
		h.fake.fail(secretRef(name), source.ErrNotFound)
		return
	}
	must(h.t, os.Remove(filepath.Join(h.manifests, name+".json")))
	h.directoryHas(name, func(_ map[string][]byte, err error) bool { return errors.Is(err, source.ErrNotFound) })
}

func typeMeta(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }

func (h *harness) writeManifest(name string, object runtime.Object) {
	h.t.Helper()
	b, err := json.Marshal(object)
	must(h.t, err)
	path := filepath.Join(h.manifests, name+".json")
	must(h.t, os.WriteFile(path+".tmp", b, 0o600))
	must(h.t, os.Rename(path+".tmp", path))
}

func (h *harness) directoryHas(name string, ok func(map[string][]byte, error) bool) {
	h.t.Helper()
	if h.directory == nil {
		return
	}
	h.directory.Subscribe(secretRef(name), "the test", false, func() {})
	defer h.directory.Unsubscribe(secretRef(name), "the test")
	testkit.Eventually(h.t, patience, "the directory of manifests to be read", func() bool {
		c, err := h.directory.Get(secretRef(name))
		return ok(c.Data, err)
	})
}

// refreshNow refreshes the volume of a request, as a worker does.
func (h *harness) refreshNow(r Request) error {
	h.t.Helper()
	err := h.refresh(withVolume(h.t.Context(), r.ID), h.get(r.ID))
	if err != nil {
		h.t.Logf("refresh %s: %v", r.ID, err)
	}
	return err
}

// settle refreshes the queued volumes, unless workers do so.
func (h *harness) settle() {
	for h.stop == nil && h.queue.Len() > 0 {
		v, _ := h.queue.Get()
		_ = h.refresh(h.t.Context(), v) // The state of the volume shows an error.
		h.queue.Done(v)
	}
}

// idle reports whether no refresh is queued or runs.
func (h *harness) idle() bool {
	for _, v := range h.all() {
		if v.refreshingFor() > 0 {
			return false
		}
	}
	return h.queue.Len() == 0
}

// publish publishes a volume. It fails the test if that fails.
func (h *harness) publish(r Request) {
	h.t.Helper()
	if err := h.Publish(h.t.Context(), r); err != nil {
		h.t.Fatalf("publish %s: %v", r.ID, err)
	}
	h.settle()
}

// unpublish unpublishes a volume. It fails the test unless nothing of the volume is left.
func (h *harness) unpublish(r Request) {
	h.t.Helper()
	if err := h.Unpublish(h.t.Context(), r.ID, r.TargetPath); err != nil {
		h.t.Fatalf("unpublish %s: %v", r.ID, err)
	}
	h.absent(r)
}

// copied returns a request whose sources can be changed without changing those of r.
func copied(r Request) Request {
	r.Spec.Sources = append([]attributes.Source(nil), r.Spec.Sources...)
	return r
}

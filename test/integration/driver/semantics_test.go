// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

// The names of the tests in the files semantics_* describe what a container sees for an object in a given state.
// docs/compatibility.md lists the tests.

// soon is the longest wait for an event that takes milliseconds, on a busy machine.
const soon = 30 * time.Second

// files is the view of a container: bytes by path.
type files map[string]string

// texts returns f in the form of tree.Files.
func (f files) texts() map[string]string {
	texts := map[string]string{}
	for path, text := range f {
		texts[path] = tree.Text([]byte(text))
	}
	return texts
}

// seen is a published volume with its path in a container. It is unpublished when its test ends.
type seen struct {
	t      *testing.T
	d      *testkit.Driver
	pod    kubelet.Pod
	volume kubelet.Volume
	target string
	dir    string
}

// see publishes a volume. It fails the test if the publish fails.
func see(t *testing.T, d *testkit.Driver, p kubelet.Pod, v kubelet.Volume) *seen {
	t.Helper()
	target, err := d.Publish(deadline(t), p, v)
	if err != nil {
		t.Fatal(err)
	}
	s := &seen{t: t, d: d, pod: p, volume: v, target: target}
	t.Cleanup(func() { unpublish(t, d, p, v.Name) })
	s.dir, _ = testkit.AsContainer(t, target)
	return s
}

// tree returns all files in the volume.
func (s *seen) tree() []tree.Entry {
	s.t.Helper()
	entries, err := tree.Read(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return entries
}

// becomes waits until the volume shows exactly these files, and then checks that it has no other names.
func (s *seen) becomes(want files) {
	s.t.Helper()
	texts := want.texts()
	var entries []tree.Entry
	for end := time.Now().Add(soon); ; {
		// An update may remove the files during the read.
		var err error
		if entries, err = tree.Read(s.dir); err == nil && maps.Equal(tree.Files(entries), texts) {
			break
		}
		if time.Now().After(end) {
			s.t.Fatalf("after %v the volume shows\n%s\nwant %q; %v", soon, lines(entries), want, err)
		}
		time.Sleep(time.Millisecond)
	}
	// The rename of ..data comes first, then links appear and go, and the old version goes last.
	testkit.Eventually(s.t, soon, "the volume to have nothing else in it", func() bool {
		entries, err := tree.Read(s.dir)
		return err == nil && slices.Equal(names(entries), layout(want))
	})
}

// stays checks that the volume shows these files. The caller knows that no refresh is under way.
func (s *seen) stays(want files) {
	s.t.Helper()
	if got := tree.Files(s.tree()); !maps.Equal(got, want.texts()) {
		s.t.Errorf("the volume shows %q, want %q", got, want)
	}
}

// is compares the whole volume with lines of tree.Entry.
func (s *seen) is(want ...string) {
	s.t.Helper()
	if got := lines(s.tree()); got != strings.Join(want, "\n") {
		s.t.Errorf("the volume is\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// stale waits until the driver has noticed that it can't refresh the volume.
func (s *seen) stale() {
	s.t.Helper()
	testkit.Eventually(s.t, soon, "the driver to say that a volume is not current",
		func() bool { return s.d.Metric("fsuser_stale_volumes") == 1 })
}

func (s *seen) current() {
	s.t.Helper()
	testkit.Eventually(s.t, soon, "the driver to say that all volumes are current",
		func() bool { return s.d.Metric("fsuser_stale_volumes") == 0 })
}

func lines(entries []tree.Entry) string {
	var all []string
	for _, e := range entries {
		all = append(all, e.String())
	}
	return strings.Join(all, "\n")
}

func names(entries []tree.Entry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.Path)
	}
	return all
}

// layout returns all names of a volume with these files in AtomicWriter's layout.
func layout(f files) []string {
	all := map[string]bool{".": true, "..data": true, tree.Generation: true}
	for path := range f {
		first, _, _ := strings.Cut(path, "/")
		all[first] = true
		for ; path != "."; path = filepath.Dir(path) {
			all[tree.Generation+"/"+path] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// waits checks that publishing a volume fails with this code, and that the message, which becomes a FailedMount Event
// of the pod, contains these words.
func waits(t *testing.T, d *testkit.Driver, p kubelet.Pod, v kubelet.Volume, code codes.Code, words ...string) {
	t.Helper()
	_, err := d.Publish(deadline(t), p, v)
	if status.Code(err) != code {
		t.Fatalf("the publish ended with %v, want %v: %v", status.Code(err), code, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}

// setSecret creates a Secret, or replaces the content of an existing one. The Secret is deleted when t ends.
func setSecret(t *testing.T, name string, data files) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	api := shared.CoreV1().Secrets(namespace)
	_, err := api.Create(deadline(t), s, metav1.CreateOptions{})
	if err == nil {
		t.Cleanup(func() { deleteSecret(t, name) })
	}
	if apierrors.IsAlreadyExists(err) {
		_, err = api.Update(deadline(t), s, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// deleteSecret deletes a Secret if it exists.
func deleteSecret(t *testing.T, name string) {
	t.Helper()
	err := shared.CoreV1().Secrets(namespace).Delete(context.Background(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// setConfigMap does the same as setSecret for a ConfigMap.
func setConfigMap(t *testing.T, name string, data, binaryData files) {
	t.Helper()
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data, BinaryData: map[string][]byte{}}
	for key, value := range binaryData {
		c.BinaryData[key] = []byte(value)
	}
	api := shared.CoreV1().ConfigMaps(namespace)
	_, err := api.Create(deadline(t), c, metav1.CreateOptions{})
	if err == nil {
		t.Cleanup(func() { deleteConfigMap(t, name) })
	}
	if apierrors.IsAlreadyExists(err) {
		_, err = api.Update(deadline(t), c, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func deleteConfigMap(t *testing.T, name string) {
	t.Helper()
	err := shared.CoreV1().ConfigMaps(namespace).Delete(context.Background(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// kind is Secret or ConfigMap, for tests of both.
type kind struct {
	name      string
	attribute string
	set       func(t *testing.T, name string, data files)
	delete    func(t *testing.T, name string)
	// volume returns Kubernetes' own volume of such an object.
	volume func(name string, optional bool, items ...corev1.KeyToPath) corev1.VolumeSource
}

// forBoth runs a test for a Secret and for a ConfigMap, each with a driver and an object name of its own.
func forBoth(t *testing.T, test func(t *testing.T, k kind, d *testkit.Driver, name string)) {
	for _, k := range []kind{
		{"Secret", "secretName", setSecret, deleteSecret, secretVolume},
		{"ConfigMap", "configMapName", func(t *testing.T, name string, data files) {
			t.Helper()
			setConfigMap(t, name, data, nil)
		}, deleteConfigMap, configMapVolume},
	} {
		t.Run(k.name, func(t *testing.T) {
			nothingLeft(t)
			test(t, k, shared.start(t), objectName(t))
		})
	}
}

// objectName returns a name that no other test uses, because the API server's cache may still have an earlier object
// with the same name.
func objectName(t *testing.T) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return '-'
	}, t.Name()), "-")
}

// setImmutable creates an immutable Secret with the key k, or makes an existing Secret immutable.
func setImmutable(t *testing.T, name, value string) {
	t.Helper()
	setSecret(t, name, files{"k": value})
	patch := []byte(`{"immutable": true}`)
	if _, err := shared.CoreV1().Secrets(namespace).Patch(deadline(t), name, types.MergePatchType, patch,
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// awaitText is holds for a text that is too long for a message.
func awaitText(t *testing.T, path, text string) {
	t.Helper()
	testkit.Eventually(t, soon, fmt.Sprintf("%d bytes in %s", len(text), filepath.Base(path)), func() bool {
		b, err := os.ReadFile(path)
		return err == nil && string(b) == text
	})
}

// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	testRoot = "/var/lib/kubelet"
	podUID   = "6f0a3c1e-0000-4000-8000-000000000001"
	otherUID = "6f0a3c1e-0000-4000-8000-000000000002"
)

// plain is the Binding of a kubelet whose root directory is no link. The directory need not exist.
var plain = Binding{root: testRoot, resolved: testRoot}

// target returns the path that kubelet gives to a volume.
func target(root, uid, name string) string {
	return root + "/pods/" + uid + "/volumes/kubernetes.io~csi/" + name + "/mount"
}

// The ids come from sha256sum, so that the test does not depend on the tested code.
func TestVolumeIDIsKubelets(t *testing.T) {
	for pod, want := range map[[2]string]string{
		{"a", "b"}:      "csi-fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603",
		{podUID, "ssh"}: "csi-c4c57ceee5c6a40eb0fda946c07f00c86720474fffc655f06f9aa742ece9fd60",
	} {
		if got := VolumeID(pod[0], pod[1]); got != want {
			t.Errorf("the id of %q is %s, want %s", pod, got, want)
		}
	}
}

func TestNewBinding(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, root string
		says       string
	}{
		{"a relative path", "var/lib/kubelet", "not an absolute path"},
		{"no path", "", "not an absolute path"},
		{"a directory that is not there", filepath.Join(dir, "nowhere"), "no such file"},
	} {
		if _, err := NewBinding(test.root, false); err == nil || !strings.Contains(err.Error(), test.says) ||
			!strings.Contains(err.Error(), "kubelet's root directory") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	for _, root := range []string{real, link, link + "/", dir + "/./link"} {
		b, err := NewBinding(root, false)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := b.PodsDir(), filepath.Join(evaluated(t, real), "pods"); got != want {
			t.Errorf("with root %s the pods are in %s, want %s", root, got, want)
		}
		path := target(filepath.Clean(root), podUID, "ssh")
		got, uid, err := b.target(VolumeID(podUID, "ssh"), path)
		if want := target(evaluated(t, real), podUID, "ssh"); err != nil || got != want || uid != podUID {
			t.Errorf("with root %s the target is %s of %s, %v; want %s", root, got, uid, err, want)
		}
		// Kubelet may use the other name of the directory.
		if _, _, err := b.target(VolumeID(podUID, "ssh"), target(evaluated(t, real), podUID, "ssh")); err != nil {
			t.Errorf("with root %s: %v", root, err)
		}
		// Only the root is resolved. A link below the root stays in the path, and the mount refuses it.
		if err := b.CheckTarget(VolumeID(podUID, "ssh"), got, podUID); err != nil {
			t.Errorf("a target that was accepted is not any more once it is in a record: %v", err)
		}
	}
	b, err := NewBinding(link, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.target(VolumeID(podUID, "ssh"), target(link+"2", podUID, "ssh")); err == nil {
		t.Error("a directory whose name begins like the root's was taken for it")
	}
}

func evaluated(t *testing.T, path string) string {
	t.Helper()
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}

func TestTargets(t *testing.T) {
	good := target(testRoot, podUID, "ssh")
	id := VolumeID(podUID, "ssh")
	if path, uid, err := plain.target(id, good); err != nil || path != good || uid != podUID {
		t.Fatalf("kubelet's own target is %s of %s, %v", path, uid, err)
	}
	for _, test := range []struct {
		name, id, path, says string
	}{
		{"a path up and away in the id (H-010)", "../../etc", good, "volume_id"},
		{"a slash in the id (H-012)", "a/b", good, "volume_id"},
		{"an id of 129 bytes (H-013)", strings.Repeat("a", 129), good, "volume_id"},
		{"an id of 128 bytes that is not kubelet's", strings.Repeat("a", 128), good, "volume_id"},
		{"an id with a NUL", "csi-\x00", good, "volume_id"},
		{"an id with a line break at its end", id + "\n", good, "volume_id"},
		{"an id with a line break at its start", "\n" + id, good, "volume_id"},
		{"the id in capitals", strings.ToUpper(id), good, "volume_id"},
		{"the id of another pod's volume (H-016)", VolumeID(otherUID, "ssh"), good, "volume_id"},
		{"the id of another volume of the pod (H-018)", VolumeID(podUID, "tls"), good, "volume_id"},
		{"a directory of the machine (H-021)", id, "/etc", "target_path"},
		{"the root of the file system (H-039)", id, "/", "target_path"},
		{"kubelet's root (H-039)", id, testRoot, "target_path"},
		{"the pods of the node", id, testRoot + "/pods", "target_path"},
		{"dots (H-022)", id, filepath.Dir(good) + "/../../../../../../etc/mount", "target_path"},
		{"dots that lead back", id, testRoot + "/pods/../pods/" + strings.TrimPrefix(good, testRoot+"/pods/"), "target_path"},
		{"a dot", id, testRoot + "/." + strings.TrimPrefix(good, testRoot), "target_path"},
		{"a double slash", id, testRoot + "/" + strings.TrimPrefix(good, testRoot), "target_path"},
		{"a slash at the end", id, good + "/", "target_path"},
		{"a relative path", id, strings.TrimPrefix(good, "/"), "target_path"},
		{"5000 bytes (H-024)", id, "/" + strings.Repeat("a", 4999), "target_path"},
		{"another plugin's directory (H-025)", id, strings.Replace(good, "~csi", "~secret", 1), "target_path"},
		{"another place in the pod's directory", id, strings.Replace(good, "/volumes/", "/volume-subpaths/", 1),
			"target_path"},
		{"another last element", id, strings.TrimSuffix(good, "mount") + "target", "target_path"},
		{"an element too many", id, good + "/mount", "target_path"},
		{"an element too few", id, filepath.Dir(good), "target_path"},
		{"another kubelet's root", id, target("/var/lib/kubelet2", podUID, "ssh"), "target_path"},
		{"a path that holds kubelet's", id, "/mnt" + good, "target_path"},
		{"a line break", id, good + "\n", "target_path"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path, uid, err := plain.target(test.id, test.path)
			if err == nil || path != "" || uid != "" {
				t.Fatalf("accepted as %q of %q, %v", path, uid, err)
			}
			if !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("the error is not one short line with %q: %q", test.says, err)
			}
		})
	}
	// The id matches the path here. Only the names in the path are wrong.
	for _, test := range []struct{ name, uid, volume string }{
		{"a tilde in the volume (H-028)", podUID, "a~b"},
		{"a dot in the volume (H-028)", podUID, "a.b"},
		{"dots as the volume", podUID, "..."},
		{"a capital in the volume", podUID, "Ssh"},
		{"a line break in the volume", podUID, "ssh\n"},
		{"a volume of 64 bytes", podUID, strings.Repeat("a", 64)},
		{"an empty volume", podUID, ""},
		{"an empty uid", "", "ssh"},
		{"a uid with dots", "a.b", "ssh"},
		{"a uid with a line break", podUID + "\n", "ssh"},
		{"a uid of 64 bytes", strings.Repeat("a", 64), "ssh"},
		{"bytes that are no UTF-8", "\xff", "ssh"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if path, uid, err := plain.target(VolumeID(test.uid, test.volume),
				target(testRoot, test.uid, test.volume)); err == nil {
				t.Errorf("accepted as %q of %q", path, uid)
			}
		})
	}
}

func TestLenientTargets(t *testing.T) {
	lenient := Binding{root: testRoot, resolved: testRoot, lenient: true}
	for _, id := range []string{"a", "fake-vol-id-0", strings.Repeat("a", 128)} { // H-013
		if path, _, err := lenient.target(id, "/tmp/target"); err != nil || path != "/tmp/target" {
			t.Errorf("%q: %q, %v", id, path, err)
		}
	}
	for _, test := range []struct{ id, path string }{
		{strings.Repeat("a", 129), "/tmp/target"}, {"", "/tmp/target"}, {"..", "/tmp/target"}, {"a/b", "/tmp/target"},
		{"a..b", "/tmp/target"},
		{".a", "/tmp/target"}, {"a", "tmp"}, {"a", "/"}, {"a", "/tmp/../etc"}, {"a", "/" + strings.Repeat("a", 4095)},
	} {
		if path, _, err := lenient.target(test.id, test.path); err == nil {
			t.Errorf("%q at %q was accepted as %q", test.id, test.path, path)
		}
	}
	if err := lenient.CheckTarget("a", "/tmp/target", podUID); err != nil {
		t.Error(err)
	}
}

// A record is untrusted input.
func TestCheckTarget(t *testing.T) {
	good := target(testRoot, podUID, "ssh")
	if err := plain.CheckTarget(VolumeID(podUID, "ssh"), good, podUID); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"of another pod":      plain.CheckTarget(VolumeID(podUID, "ssh"), good, otherUID),
		"of no pod":           plain.CheckTarget(VolumeID(podUID, "ssh"), good, ""),
		"with another id":     plain.CheckTarget(VolumeID(otherUID, "ssh"), good, podUID),
		"outside of the root": plain.CheckTarget(VolumeID(podUID, "ssh"), "/etc", podUID),
	} {
		if err == nil {
			t.Errorf("a record %s was accepted", name)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// TestAllow shows what an administrator allows with the parameters of the policy.
func TestAllow(t *testing.T) {
	c := startCluster(t)
	c.installAllow(t,
		`allow={"enabled": true, "uids": ["1000-1999", 70], "gids": [0, "5-6"], "secrets": ["ssh-*", "tls"], `+
			`"configMaps": []}`)
	c.waitForAllow(t, "not-allowed")
	for _, test := range []struct {
		name   string
		volume corev1.Volume
		// want is a part of the policy's message; "" if the policy allows the pod.
		want   string
		change func(*corev1.Pod)
	}{
		{"an owner of the range", driverVolume("v", "secretName", "tls", "uid", "1999"), "", nil},
		{"an owner alone", driverVolume("v", "secretName", "tls", "uid", "70", "gid", "5"), "", nil},
		{"an owner beside the range", driverVolume("v", "secretName", "tls", "uid", "2000"),
			`volume "v": Forbidden: uid 2000 is not allowed here, only 1000-1999,70`, nil},
		{"root", driverVolume("v", "secretName", "tls", "uid", "0"), "uid 0 is not allowed here", nil},
		{"a group", driverVolume("v", "secretName", "tls", "uid", "70", "gid", "7"),
			`Forbidden: gid 7 is not allowed here, only 0,5-6`, nil},
		{"the pod's group, which is not allowed", driverVolume("v", "secretName", "tls", "uid", "70"), "gid 2000 ",
			func(p *corev1.Pod) { p.Spec.SecurityContext = users(1000, 2000) }},
		{"the pod's user can be root, too", driverVolume("v", "secretName", "tls"),
			"uid 0 is not allowed here, only 1000-1999,70 (the attribute uid chooses another)", func(p *corev1.Pod) {
				p.Spec.SecurityContext = users(1000, 6)
			}},
		{"the pod's user, which is not allowed", driverVolume("v", "secretName", "tls"), "uid 2000 ",
			func(p *corev1.Pod) { p.Spec.SecurityContext = users(2000, 6) }},
		{"the container's user, which is not allowed", driverVolume("v", "secretName", "tls"), "uid 2000 ",
			func(p *corev1.Pod) {
				p.Spec.SecurityContext = users(1000, 0)
				p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(2000))}
			}},
		{"an init container's user", driverVolume("v", "secretName", "tls"), "uid 2000 ", func(p *corev1.Pod) {
			p.Spec.InitContainers = p.Spec.Containers
			p.Spec.Containers = []corev1.Container{{Name: "d", Image: "i"}}
			p.Spec.InitContainers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(2000))}
		}},
		{"nothing names an owner", driverVolume("v", "secretName", "tls"), "uid 0 ", nil},
		{"a file's owner", driverVolume("v", "secretName", "tls", "uid", "70", "uid/d/a", "1000", "gid/d/a", "5"), "", nil},
		{"a file's owner, who is not allowed", driverVolume("v", "secretName", "tls", "uid", "70", "uid/d/a", "0"), "uid 0 ",
			nil},
		{"a file's group, which is not allowed", driverVolume("v", "secretName", "tls", "uid", "70", "gid/d/a", "7"),
			"gid 7 ", nil},
		{"a Secret by the beginning of its name", driverVolume("v", "secretName", "ssh-keys", "uid", "70"), "", nil},
		{"another Secret", driverVolume("v", "secretName", "my-ssh-keys", "uid", "70"),
			`Secret "my-ssh-keys" is not allowed here, only ssh-*,tls`, nil},
		{"more than the whole name", driverVolume("v", "secretName", "tls2", "uid", "70"),
			`Secret "tls2" is not allowed here`, nil},
		{"no ConfigMap", driverVolume("v", "configMapName", "tls", "uid", "70"),
			`ConfigMap "tls" is not allowed here, only none`, nil},
		{"nodePublishSecretRef", withSecretRef(driverVolume("v", "uid", "70"), "tls"), "", nil},
		{"nodePublishSecretRef without a uid", withSecretRef(driverVolume("v"), "tls"), "uid 0 ",
			func(p *corev1.Pod) { p.Spec.SecurityContext = users(1000, 6) }},
		{"nodePublishSecretRef without a uid, of another user", withSecretRef(driverVolume("v"), "tls"), "uid 2000 ",
			func(p *corev1.Pod) { p.Spec.SecurityContext = users(2000, 6) }},
		{"nodePublishSecretRef of another", withSecretRef(driverVolume("v", "uid", "70"), "x"),
			`Secret "x" is not allowed here`, nil},
		{"another volume", driverVolume("v", "volume", "o", "uid", "70"), "",
			beside(`{"name": "o", "secret": {"secretName": "tls"}}`)},
		{"another volume of another Secret", driverVolume("v", "volume", "o", "uid", "70"), `Secret "x" is not allowed here`,
			beside(`{"name": "o", "secret": {"secretName": "x"}}`)},
		{"another volume of a ConfigMap", driverVolume("v", "volume", "o", "uid", "70"), `ConfigMap "x" is not allowed here`,
			beside(`{"name": "o", "configMap": {"name": "x"}}`)},
		{"another volume without an owner", driverVolume("v", "volume", "o"), "uid 0 ",
			beside(`{"name": "o", "secret": {"secretName": "tls"}}`)},
		{"projected", driverVolume("v", "volume", "o", "uid", "70"), "", beside(`{"name": "o", "projected": {"sources": [
			{"secret": {"name": "tls"}}, {"secret": {"name": "ssh-a"}},
			{"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}`)},
		{"projected of another Secret", driverVolume("v", "volume", "o", "uid", "70"), `Secret "x" is not allowed here`,
			beside(`{"name": "o", "projected": {"sources": [{"secret": {"name": "tls"}}, {"secret": {"name": "x"}}]}}`)},
		{"projected of a ConfigMap", driverVolume("v", "volume", "o", "uid", "70"), `ConfigMap "x" is not allowed here`,
			beside(`{"name": "o", "projected": {"sources": [{"secret": {"name": "tls"}}, {"configMap": {"name": "x"}}]}}`)},
		{"nothing projected", driverVolume("v", "volume", "o", "uid", "70"), "", beside(`{"name": "o", "projected": {}}`)},
		{"the downward API", driverVolume("v", "volume", "o", "uid", "70"), "",
			beside(`{"name": "o", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}`)},
		{"no such volume", driverVolume("v", "volume", "missing", "uid", "70"), "", nil},
		{"what the driver refuses", driverVolume("v", "secretName", "tls", "uid", "root"), "", nil},
		{"other drivers", otherDriverVolume("v", "secretName", "x"), "", nil},
		{"volumes of Kubernetes", secretVolume("v", "x"), "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := podWith("p", test.volume)
			if test.change != nil {
				test.change(pod)
			}
			_, err := c.dryRunPod(t, pod)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
	t.Run("what makes pods", func(t *testing.T) {
		c.warnsOfTemplates(t, `Secret "x" is not allowed here`, driverVolume("v", "secretName", "x", "uid", "70"))
	})
	t.Run("rules that are changed", func(t *testing.T) {
		c.allow(t, "uids", "5 - 6, 9") // with spaces, as people may write it
		c.allow(t, "gids", "")
		c.allow(t, "secrets", "x")
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9", "gid", "0")),
			"gid 0 is not allowed here, only none")
		c.forget(t, "gids")
		c.forget(t, "configmaps")
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9", "gid", "77"),
			driverVolume("w", "configMapName", "any", "uid", "6")))
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "7")), "7 is not allowed here, only 5 - 6, 9")
	})
	t.Run("rules of a namespace", func(t *testing.T) {
		annotate := func(value string) {
			t.Helper()
			patch := fmt.Sprintf(`{"metadata": {"annotations": {"fsuser.csi.io/allow-uids": %s}}}`, value)
			if _, err := c.CoreV1().Namespaces().Patch(t.Context(), apps, types.MergePatchType, []byte(patch),
				metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		annotate(`"6-7"`)
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9")), "9 is not allowed here, only 6-7")
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "7")), "7 is not allowed here, only 5 - 6, 9")
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "6")))
		annotate("null")
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9")))
	})
	t.Run("rules that can't be read", func(t *testing.T) {
		for _, rule := range [][2]string{
			{"uids", "root"}, {"uids", "5,root"}, {"uids", "root,5"}, {"uids", "5 6"}, {"uids", "1-9 70"}, {"uids", "1-9-5"},
			{"uids", "1-"}, {"uids", "-5"},
			{"gids", "0;5"}, {"secrets", "x tls"}, {"secrets", "*x"}, {"configmaps", "X"}, {"configMaps", "x"}, {"uid", "5"},
		} {
			c.allow(t, "uids", "5")
			c.allow(t, rule[0], rule[1])
			c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "5")),
				fmt.Sprintf("fsuser.csi.io/allow-%s of the CSIDriver or the namespace can't be read: %q", rule[0], rule[1]))
			c.forget(t, rule[0])
			if len(attributes.ValidateAnnotations(attributes.OnCSIDriver,
				map[string]string{"fsuser.csi.io/allow-" + rule[0]: rule[1]})) == 0 {
				t.Errorf("lint takes allow-%s: %q", rule[0], rule[1])
			}
		}
		good := map[string]string{"secrets": "*, tls*,", "uids": " 5 - 6 ,"}
		for what, rule := range good {
			c.allow(t, what, rule)
			if errs := attributes.ValidateAnnotations(attributes.OnCSIDriver,
				map[string]string{"fsuser.csi.io/allow-" + what: rule}); len(errs) > 0 {
				t.Errorf("lint: %v", errs)
			}
		}
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "5")))
		c.may(t, podWith("p", secretVolume("v", "x")))
	})
	// Kubelet refuses inline volumes of a driver without a CSIDriver. So the policy must refuse nothing, and above all no
	// pods without the driver.
	t.Run("no CSIDriver", func(t *testing.T) {
		if err := c.StorageV1().CSIDrivers().Delete(t.Context(), "fsuser.csi.io", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "7")))
		c.may(t, podWith("p", secretVolume("v", "x")))
	})
}

// The users of KEP-5936 count as owners, and the policy judges volumes that fsUser moves like volumes that people
// write.
func TestAllowTypedFields(t *testing.T) {
	c := startClusterWith(t, controlplane.Options{ExtraArgs: []string{"--feature-gates=AtomicWriteVolumeUserFields=true"}})
	startFsUser(t, c)
	c.installAllow(t,
		`allow={"enabled": true, "uids": [70], "gids": [0], "secrets": ["tls", "aaa*"], "configMaps": ["conf", "aaa*"]}`)
	c.waitForAllow(t, "not-allowed")
	for _, test := range []struct{ name, volume, want string }{
		{"a volume's owner", `{"name": "v", "secret": {"secretName": "tls", "defaultUser": 70}}`, ""},
		{"a volume's owner, who is not allowed", `{"name": "v", "configMap": {"name": "conf", "defaultUser": 71}}`,
			"uid 71 "},
		{"a file's owner",
			`{"name": "v", "secret": {"secretName": "tls", "defaultUser": 70, ` +
				`"items": [{"key": "k", "path": "k", "user": 70}]}}`, ""},
		{"a file's owner, who is not allowed",
			`{"name": "v", "secret": {"secretName": "tls", "defaultUser": 70, "items": [{"key": "k", "path": "k", "user": 0}]}}`,
			"uid 0 "},
		{"a field's owner", `{"name": "v", "downwardAPI": {"defaultUser": 70, ` +
			`"items": [{"path": "n", "user": 72, "fieldRef": {"fieldPath": "metadata.name"}}]}}`, "uid 72 "},
		{"a projected owner", `{"name": "v", "projected": {"defaultUser": 73, "sources": [{"secret": {"name": "tls"}}]}}`,
			"uid 73 "},
		{"a projected file's owner", `{"name": "v", "projected": {"defaultUser": 70, "sources": [{"secret": {"name": "tls"}},
			{"configMap": {"name": "conf", "items": [{"key": "k", "path": "k", "user": 74}]}}]}}`, "uid 74 "},
	} {
		byHand := podWith("p", driverVolume("d", "volume", "v", "gid", "0"), volumeOf(test.volume))
		for how, pod := range map[string]*corev1.Pod{"by hand": byHand, "fsUser": annotated("70", volumeOf(test.volume))} {
			if _, err := c.dryRunPod(t, pod); (err == nil) != (test.want == "") || err != nil &&
				!strings.Contains(err.Error(), test.want) {
				t.Errorf("%s, %s: error %v, want one that says %q", test.name, how, err, test.want)
			}
		}
	}
	if _, err := c.dryRunPod(t, annotated("71", secretVolume("v", "tls"))); err == nil ||
		!strings.Contains(err.Error(), "uid 71 is not allowed here") {
		t.Errorf("another user: %v", err)
	}
	if _, err := c.dryRunPod(t, annotated("70", configMapVolume("v", "x"))); err == nil ||
		!strings.Contains(err.Error(), `ConfigMap "x" is not allowed here`) {
		t.Errorf("another object: %v", err)
	}
	if _, err := c.dryRunPod(t, annotated("70", manySources(400)...)); err != nil {
		t.Errorf("400 volumes with names as long as they may be: %v", err)
	}
}

// manySources returns volumes of one Secret each, with names, keys and paths of at most a usual length.
func manySources(n int) (volumes []corev1.Volume) {
	for i := range n {
		v := secretVolume(fmt.Sprint("v", i), strings.Repeat("a", 249)+fmt.Sprintf("%04d", i))
		v.Secret.Items = []corev1.KeyToPath{{Key: "k", Path: "k", User: new(int64(70))}}
		volumes = append(volumes, v)
	}
	return volumes
}

// beside returns a change that adds another volume to the pod.
func beside(volume string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, volumeOf(volume)) }
}

// A chart without a list allows everything.
func TestAllowNothingSaid(t *testing.T) {
	c := startCluster(t)
	c.installAllow(t, `allow={"enabled": true, "uids": null, "secrets": ["only"]}`)
	c.waitForAllow(t, "not-allowed")
	for _, v := range []corev1.Volume{
		driverVolume("v", "secretName", "only", "uid", "0", "uid/a", "5"), driverVolume("v", "configMapName", "any"),
	} {
		if _, err := c.dryRunPod(t, podWith("p", v)); err != nil {
			t.Error(err)
		}
	}
}

func (c *cluster) installAllow(t *testing.T, values string) {
	t.Helper()
	c.installPolicy(t, "csidriver.yaml", values)
	c.installPolicy(t, "policy-allow.yaml", values)
}

func (c *cluster) allow(t *testing.T, what, rule string) {
	t.Helper()
	c.annotateDriver(t, map[string]any{"fsuser.csi.io/allow-" + what: rule})
}

func (c *cluster) forget(t *testing.T, what string) {
	t.Helper()
	c.annotateDriver(t, map[string]any{"fsuser.csi.io/allow-" + what: nil})
}

func (c *cluster) annotateDriver(t *testing.T, annotations map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StorageV1().CSIDrivers().Patch(t.Context(), "fsuser.csi.io", types.MergePatchType, patch,
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// may waits until the API server accepts a pod, because it learns of rules with a watch.
func (c *cluster) may(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	eventually(t, func() error {
		_, err := c.dryRunPod(t, pod)
		return err
	})
}

// mayNot waits until the API server refuses a pod with these words.
func (c *cluster) mayNot(t *testing.T, pod *corev1.Pod, words string) {
	t.Helper()
	eventually(t, func() error {
		if _, err := c.dryRunPod(t, pod); err == nil || !strings.Contains(err.Error(), words) {
			return fmt.Errorf("error %w, want one that says %q", err, words)
		}
		return nil
	})
}

func (c *cluster) waitForAllow(t *testing.T, secret string) {
	t.Helper()
	eventually(t, func() error {
		_, err := c.dryRunPod(t, podWith("p", driverVolume("v", "secretName", secret, "uid", "70")))
		if err == nil || !strings.Contains(err.Error(), "is not allowed here") {
			return fmt.Errorf("the policy does nothing: %w", err)
		}
		return nil
	})
}

func users(user, group int64) *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &group}
}

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
)

// What an administrator allows, by the parameters of a policy.
func TestAllow(t *testing.T) {
	c := startCluster(t)
	c.installAllow(t, `allow={"enabled": true, "uids": ["1000-1999", 70], "gids": [0, "5-6"], "secrets": ["ssh-*", "tls"], "configMaps": []}`)
	c.waitForAllow(t, "not-allowed")
	for _, test := range []struct {
		name   string
		volume corev1.Volume
		// A part of what the policy says; "" if it lets the pod in.
		want   string
		change func(*corev1.Pod)
	}{
		{"an owner of the range", driverVolume("v", "secretName", "tls", "uid", "1999"), "", nil},
		{"an owner alone", driverVolume("v", "secretName", "tls", "uid", "70", "gid", "5"), "", nil},
		{"an owner beside the range", driverVolume("v", "secretName", "tls", "uid", "2000"), `volume "v": volumeAttributes[uid]: Forbidden: 2000 is not allowed here, only 1000-1999,70`, nil},
		{"root", driverVolume("v", "secretName", "tls", "uid", "0"), "0 is not allowed here", nil},
		{"a group", driverVolume("v", "secretName", "tls", "uid", "70", "gid", "7"), `volumeAttributes[gid]: Forbidden: 7 is not allowed here, only 0,5-6`, nil},
		{"the pod's user", driverVolume("v", "secretName", "tls"), "", func(p *corev1.Pod) { p.Spec.SecurityContext = users(1000, 6) }},
		{"the pod's user, which is not allowed", driverVolume("v", "secretName", "tls"), "[uid]: Forbidden: 2000 ", func(p *corev1.Pod) { p.Spec.SecurityContext = users(2000, 6) }},
		{"the pod's group, which is not allowed", driverVolume("v", "secretName", "tls"), "[gid]: Forbidden: 2000 ", func(p *corev1.Pod) { p.Spec.SecurityContext = users(1000, 2000) }},
		{"the containers' user", driverVolume("v", "secretName", "tls"), "", func(p *corev1.Pod) {
			p.Spec.SecurityContext = users(5, 0)
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1000))}
		}},
		{"nobody in common is root", driverVolume("v", "secretName", "tls"), "[uid]: Forbidden: 0 ", func(p *corev1.Pod) {
			p.Spec.SecurityContext = users(1000, 0)
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(1001))}}}
		}},
		{"nobody at all is root", driverVolume("v", "secretName", "tls"), "[uid]: Forbidden: 0 ", nil},
		{"a Secret by the beginning of its name", driverVolume("v", "secretName", "ssh-keys", "uid", "70"), "", nil},
		{"another Secret", driverVolume("v", "secretName", "my-ssh-keys", "uid", "70"), `Secret "my-ssh-keys" is not allowed here, only ssh-*,tls`, nil},
		{"more than the whole name", driverVolume("v", "secretName", "tls2", "uid", "70"), `Secret "tls2" is not allowed here`, nil},
		{"no ConfigMap", driverVolume("v", "configMapName", "tls", "uid", "70"), `ConfigMap "tls" is not allowed here, only none`, nil},
		{"nodePublishSecretRef", withSecretRef(driverVolume("v", "uid", "70"), "tls"), "", nil},
		{"nodePublishSecretRef without a uid", withSecretRef(driverVolume("v"), "tls"), "[uid]: Forbidden: 0 ", func(p *corev1.Pod) { p.Spec.SecurityContext = users(1000, 6) }},
		{"nodePublishSecretRef of another", withSecretRef(driverVolume("v", "uid", "70"), "x"), `Secret "x" is not allowed here`, nil},
		{"sources", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"k","path":"p","mode":256}],"optional":true}},{"secret":{"name":"ssh-a"}}]`), "", nil},
		{"sources of another", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls"}},{"secret":{"name":"x"}}]`), `Secret "x" is not allowed here`, nil},
		{"sources with a ConfigMap", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls"}},{"configMap":{"name":"x"}}]`), `ConfigMap "x" is not allowed here`, nil},
		{"sources with fields", driverVolume("v", "uid", "70", "sources", `[{"downwardAPI":{"items":[{"path":"p","fieldRef":{"fieldPath":"metadata.name"}}]}}]`), "", nil},
		{"sources in YAML", driverVolume("v", "uid", "70", "sources", `[{secret: {name: tls}}]`), "write it as JSON", nil},
		{"sources with an escape", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"\u0078"}}]`), "write it as JSON", nil},
		{"sources with a hidden kind", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls"}},{"s\u0065cret":{"name":"x"}}]`), "write it as JSON", nil},
		{"sources with more than can be read", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"x"}}`+strings.Repeat(`,[]`, 10_000)+`]`), "write it as JSON", nil},
		{"sources with a quote that begins no text", driverVolume("v", "uid", "70", "sources",
			`[{"secret":{"name":"tls","items":[{"key":"k","path":1 ",mode: 256}]}},{? secret : {name: x}},{secret: {name: tls, items: [{key: k, path: 1 "}]}}]`), "write it as JSON", nil},
		{"sources with escapes in a path", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"k","path":"\"a\u0026\"?!"}]}}]`), "", nil},
		{"sources with a quote's escape before another", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"k","path":"\""}]}},{"secret":{"name":"x"}}]`),
			`Secret "x" is not allowed here`, nil},
		{"sources with a backslash's escape", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"k","path":"a\\"}]}}]`), "write it as JSON", nil},
		{"sources with an escape in a name that is allowed", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls\u0026"}}]`), "write it as JSON", nil},
		{"items with escapes in a path", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"k","path":"\"uid\u0026\"?!","mode":256}]`), "", nil},
		{"items with an escape, and a file's owner", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"k","path":"\"a\u0026","uid" : 0}]`), "a uid of a single file", nil},
		{"items with an escape, no JSON", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"k","path":"\u0026",!!binary "dWlk":0}]`), "a uid of a single file", nil},
		{"items", driverVolume("v", "secretName", "tls", "uid", "70", "items", "[{key: fluid, path: guide/uid, mode: 0400}]"), "", nil},
		{"a file's owner", driverVolume("v", "secretName", "tls", "uid", "70", "items", "[{key: a, path: a, uid: 0}]"), "a uid of a single file", nil},
		{"a file's owner in JSON", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"a","path":"a","uid" :0}]`), "a uid of a single file", nil},
		{"a file's group", driverVolume("v", "secretName", "tls", "uid", "70", "items", "- key: a\n  path: a\n  gid: 0"), "a gid of a single file", nil},
		{"a file's owner, hidden", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"a","path":"a","\u0075id":0}]`), "a uid of a single file", nil},
		{"a file's owner, hidden in another way", driverVolume("v", "secretName", "tls", "uid", "70", "items", "- key: a\n  path: a\n  ? uid # x\n  : 0"), "a uid of a single file", nil},
		{"a file's owner in sources", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"a","path":"a","uid":0}]}}]`), "a uid of a single file", nil},
		{"a file's owner, as base64", driverVolume("v", "secretName", "tls", "uid", "70", "items", "[{key: a, path: a, !!binary dWlk: 0}]"), "a uid of a single file", nil},
		{"a file's group, as base64 in JSON", driverVolume("v", "secretName", "tls", "uid", "70", "items", `[{"key":"a","path":"a",!!binary "Z2lk":0}]`), "a gid of a single file", nil},
		{"a file's owner in sources, as base64", driverVolume("v", "uid", "70", "sources", `[{"secret":{"name":"tls","items":[{"key":"a","path":"a",!<tag:yaml.org,2002:binary> dWlk: 0}]}}]`),
			"a uid of a single file", nil},
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
		c.allow(t, "uids", "5 - 6, 9") // as people write it
		c.allow(t, "gids", "")
		c.allow(t, "secrets", "x")
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9", "gid", "0")), "0 is not allowed here, only none")
		c.forget(t, "gids")
		c.forget(t, "configmaps")
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "9", "gid", "77"), driverVolume("w", "configMapName", "any", "uid", "6")))
		c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "7")), "7 is not allowed here, only 5 - 6, 9")
	})
	t.Run("rules of a namespace", func(t *testing.T) {
		annotate := func(value string) {
			t.Helper()
			patch := fmt.Sprintf(`{"metadata": {"annotations": {"fsuser.csi.io/allow-uids": %s}}}`, value)
			if _, err := c.CoreV1().Namespaces().Patch(t.Context(), apps, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
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
			{"uids", "root"}, {"uids", "5,root"}, {"uids", "root,5"}, {"uids", "5 6"}, {"uids", "1-9 70"}, {"uids", "1-9-5"}, {"uids", "1-"}, {"uids", "-5"},
			{"gids", "0;5"}, {"secrets", "x tls"}, {"secrets", "*x"}, {"configmaps", "X"}, {"configMaps", "x"}, {"uid", "5"},
		} {
			c.allow(t, "uids", "5")
			c.allow(t, rule[0], rule[1])
			c.mayNot(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "5")), fmt.Sprintf("fsuser.csi.io/allow-%s of the CSIDriver or the namespace can't be read: %q", rule[0], rule[1]))
			c.forget(t, rule[0])
			if len(attributes.ValidateAnnotations(attributes.OnCSIDriver, map[string]string{"fsuser.csi.io/allow-" + rule[0]: rule[1]})) == 0 {
				t.Errorf("lint takes allow-%s: %q", rule[0], rule[1])
			}
		}
		good := map[string]string{"secrets": "*, tls*,", "uids": " 5 - 6 ,"}
		for what, rule := range good {
			c.allow(t, what, rule)
			if errs := attributes.ValidateAnnotations(attributes.OnCSIDriver, map[string]string{"fsuser.csi.io/allow-" + what: rule}); len(errs) > 0 {
				t.Errorf("lint: %v", errs)
			}
		}
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "5")))
		c.may(t, podWith("p", secretVolume("v", "x")))
	})
	// Kubelet refuses inline volumes of a driver that has no CSIDriver: nothing has to be refused here, least of all pods without the driver.
	t.Run("no CSIDriver", func(t *testing.T) {
		if err := c.StorageV1().CSIDrivers().Delete(t.Context(), "fsuser.csi.io", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.may(t, podWith("p", driverVolume("v", "secretName", "x", "uid", "7")))
		c.may(t, podWith("p", secretVolume("v", "x")))
	})
}

// fsUser writes escapes, of which the policy has to know that they hide nothing.
func TestAllowTakesWhatFsUserWrites(t *testing.T) {
	c := startCluster(t)
	startFsUser(t, c)
	c.installAllow(t, `allow={"enabled": true, "uids": [70], "gids": [0], "secrets": ["tls", "aaa*"], "configMaps": ["conf", "aaa*"]}`)
	c.waitForAllow(t, "not-allowed")
	// The characters that the driver's paths may have and that are written, or read, in another way.
	const path = `a&b !?'\"uid\" # secret, {name}[-*%@|>`
	item := `"items": [{"key": "k", "path": "` + path + `", "mode": 256}, {"key": "k", "path": "uid"}]`
	field := `"items": [{"path": "d/` + path + `", "fieldRef": {"fieldPath": "metadata.annotations['uid']"}}]`
	for _, volume := range []string{
		`{"name": "v", "secret": {"secretName": "tls", ` + item + `}}`,
		`{"name": "v", "configMap": {"name": "conf", ` + item + `}}`,
		`{"name": "v", "downwardAPI": {` + field + `}}`,
		`{"name": "v", "projected": {"sources": [{"downwardAPI": {` + field + `}}, {"secret": {"name": "tls", "optional": true, ` + item + `}}, {"configMap": {"name": "conf"}}]}}`,
	} {
		got, err := c.dryRunPod(t, annotated("70", volumeOf(volume)))
		if err != nil || got.Spec.Volumes[0].CSI == nil {
			t.Errorf("%s: %v", volume, err)
			continue
		}
		if _, errs := attributes.Parse(got.Spec.Volumes[0].CSI.VolumeAttributes, false); len(errs) > 0 {
			t.Errorf("the driver refuses %s: %v", volume, errs)
		}
		if _, err := c.dryRunPod(t, annotated("71", volumeOf(volume))); err == nil || !strings.Contains(err.Error(), "71 is not allowed here") {
			t.Errorf("%s of another user: %v", volume, err)
		}
		if other := strings.NewReplacer(`"tls"`, `"x"`, `"conf"`, `"x"`).Replace(volume); other != volume {
			if _, err := c.dryRunPod(t, annotated("70", volumeOf(other))); err == nil || !strings.Contains(err.Error(), `"x" is not allowed here`) {
				t.Errorf("%s: %v", other, err)
			}
		}
	}
	if got, err := c.dryRunPod(t, annotated("70", longSources(3, 57)...)); err != nil || got.Spec.Volumes[0].CSI == nil {
		t.Errorf("as much as fsUser takes: %v", err)
	}
}

// A chart without a list allows everything.
func TestAllowNothingSaid(t *testing.T) {
	c := startCluster(t)
	c.installAllow(t, `allow={"enabled": true, "uids": null, "secrets": ["only"]}`)
	c.waitForAllow(t, "not-allowed")
	for _, v := range []corev1.Volume{
		driverVolume("v", "secretName", "only", "uid", "0", "items", "[{key: a, path: a, uid: 5}]"), driverVolume("v", "configMapName", "any"),
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
	if _, err := c.StorageV1().CSIDrivers().Patch(t.Context(), "fsuser.csi.io", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// may waits until a pod is let in: the API server learns of rules by a watch.
func (c *cluster) may(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	eventually(t, func() error {
		_, err := c.dryRunPod(t, pod)
		return err
	})
}

// mayNot waits until a pod is refused with the words.
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

// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"
)

// show returns a script that prints the owner, mode and content of a file.
func show(path string) string {
	return "stat -L -c '%u:%g %a' " + path + " && cat " + path + " && echo"
}

// readmePod returns README's example of a pod, with only its image replaced.
func readmePod(t *testing.T) *corev1.Pod {
	t.Helper()
	example := readPage(t, readme).example(t, "example.com/git")
	return parsePod(t, strings.ReplaceAll(example, "example.com/git", podImage))
}

const readmeKey = "-----BEGIN OPENSSH PRIVATE KEY-----"

func testREADME(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("ssh-keys", "id_ed25519", readmeKey)
	pod := n.createPod(readmePod(t))
	n.ready(pod.Name)
	n.expect(pod.Name, "",
		"cd /home/git/.ssh; ls -ln ..data/ | awk 'NF > 8 {print $1, $2, $3, $4, $5, $9}'; cat id_ed25519",
		fmt.Sprintf("-rw------- 1 1000 0 %d id_ed25519\n%s", len(readmeKey), readmeKey))
	n.expect(pod.Name, "", "cd /home/git/.ssh; touch new; echo x > id_ed25519; chmod 644 id_ed25519; true",
		`touch: new: Read-only file system
sh: can't create id_ed25519: Read-only file system
chmod: id_ed25519: Read-only file system`)
}

// testREADMEVolume replaces the volumes of README's pod with those of its example of a described volume.
func testREADMEVolume(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("ssh-keys", "id_ed25519", readmeKey, "other", "x")
	pod := readmePod(t)
	var second corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(readPage(t, readme).example(t, "volume: ssh-keys")), &second); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Volumes = second.Volumes
	n.createPod(pod)
	n.ready(pod.Name)
	n.expect(pod.Name, "", "cd /home/git/.ssh; ls; "+show("id"), "id\n1000:0 600\n"+readmeKey)
}

func testDeployment(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("ssh-keys", "id_ed25519", readmeKey)
	pod := readmePod(t)
	labels, replicas := map[string]string{"app": "git"}, int32(2)
	_, err := client.AppsV1().Deployments(n.name).Create(suite, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "git"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "both pods of the Deployment", "deployments", n.name, "git", &appsv1.Deployment{},
		func(e watch.Event) (bool, error) {
			return e.Object.(*appsv1.Deployment).Status.AvailableReplicas == replicas, nil
		})
	pods, err := client.CoreV1().Pods(n.name).List(suite, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		n.expect(p.Name, "", show("/home/git/.ssh/id_ed25519"), "1000:0 600\n"+readmeKey)
	}
}

// onePod returns a pod of uid 1000 with one volume at /v, in the form that users write: a driver and attributes.
func onePod(name, attributes string) string {
	return fmt.Sprintf(`
metadata: {name: %s}
spec:
  securityContext: {runAsUser: 1000}
  containers:
  - name: main
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  - name: v
    csi: {driver: fsuser.csi.io, volumeAttributes: {%s}}`, name, attributes)
}

// describedPod returns onePod with a volume that another volume of the pod describes.
func describedPod(name, described, attributes string) string {
	return onePod(name, "volume: described, "+attributes) + "\n  - {name: described, " + described + "}"
}

// withCSI adds fields to the csi volume of onePod.
func withCSI(pod, fields string) string {
	return strings.Replace(pod, "driver: fsuser.csi.io,", "driver: fsuser.csi.io, "+fields+",", 1)
}

// watchingPod returns onePod that prints /v/key after each change.
func watchingPod(name, attributes string) string { return watching(onePod(name, attributes)) }

func watching(pod string) string {
	return strings.Replace(pod, "- name: main", `- name: main
    command: [/pod, watch, /v/key]`, 1)
}

func testSecretAfterPod(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.create(onePod("early", `secretName: late, uid: "1000"`))
	// The answer of the API server is NotFound or Forbidden, depending on the kind of access and on its cache.
	message := n.event("early", "FailedMount", n.name+"/late")
	t.Logf("the pod is told: %s", message)
	n.secret("late", "key", "v1")
	begin := time.Now()
	n.ready("early")
	t.Logf("ready %.1f s after the Secret", time.Since(begin).Seconds())
	n.expect("early", "", show("/v/key"), "1000:0 400\nv1")
}

func testConfigMap(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.configMap("settings", "a.conf", "A", "b.conf", "B")
	n.run(onePod("reader", `configMapName: settings, uid: "1000", gid: "7"`))
	n.expect("reader", "", "cd /v; ls; "+show("a.conf"), "a.conf\nb.conf\n1000:7 444\nA")
}

func testItems(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("keys", "a", "A", "b", "B", "c", "C")
	n.run(describedPod("items", `secret: {secretName: keys, defaultMode: 0400,
    items: [{key: a, path: x/y/a}, {key: b, path: b, mode: 0600}]}`,
		`dirMode: "0700", mode/x/y/a: "0440", gid/x/y/a: "8", uid/b: "5"`))
	n.expect("items", "", "cd /v; find . -follow -type f ! -path '*/..*' | sort; "+show("x/y/a")+
		"; stat -L -c '%u:%g %a' b; cat b; stat -c '%u:%g %a' /v/ ; stat -L -c '%u:%g %a' x",
		"./b\n./x/y/a\n1000:8 440\nA\n5:0 600\ncat: can't open 'b': Permission denied\n1000:0 700\n1000:0 700")
}

// testProjected checks a volume of the pod that describes two objects and the downward API. Each of them is refreshed.
func testProjected(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("keys", "key", "v1")
	n.configMap("settings", "a.conf", "A")
	n.run(watching(describedPod("projected", `projected: {defaultMode: 0440, sources: [
    {secret: {name: keys, items: [{key: key, path: key, mode: 0400}]}},
    {configMap: {name: settings}},
    {downwardAPI: {items: [{path: pod/name, fieldRef: {fieldPath: metadata.name}}]}}]}`, `gid: "7"`)))
	n.expect("projected", "", "cd /v; "+show("key")+"; "+show("a.conf")+"; "+show("pod/name"),
		"1000:7 400\nv1\n1000:7 440\nA\n1000:7 440\nprojected")
	n.changeSecret("keys", "key", "v2")
	n.waitSaid("projected", "/v/key v2")
	n.expect("projected", "", "cd /v; ls; "+show("key"), "a.conf\nkey\npod\n1000:7 400\nv2")
}

func testOptional(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("partial", "key", "v1")
	n.run(onePod("empty", `secretName: missing, optional: "true"`))
	n.run(describedPod("partial", `secret: {secretName: partial, optional: true,
    items: [{key: key, path: key}, {key: other, path: other}]}`, ""))
	n.expect("empty", "", "ls /v; echo none", "none")
	n.expect("partial", "", "ls /v", "key")
	n.run(watchingPod("filled", `secretName: filled, optional: "true"`))
	n.secret("filled", "key", "v1")
	n.waitSaid("filled", "/v/key v1")
}

// testNodePublishSecretRef checks that kubelet reads the Secret each time it publishes the volume, and that the driver
// reads nothing. So files without uid belong to root, although the pod has a runAsUser.
func testNodePublishSecretRef(t *testing.T) {
	t.Parallel()
	n := withoutConsent(t)
	n.secret("ref", "key", "v1")
	n.run(withCSI(watchingPod("ref", `uid: "1000"`), "nodePublishSecretRef: {name: ref}"))
	n.expect("ref", "", show("/v/key"), "1000:0 400\nv1")
	n.run(withCSI(onePod("of-root", ``), "nodePublishSecretRef: {name: ref}"))
	n.expect("of-root", "", "stat -L -c '%u:%g %a' /v/key", "0:0 400")
	n.changeSecret("ref", "key", "v2")
	n.touch("ref")
	n.waitSaid("ref", "/v/key v2")
}

func testOwnerFromPod(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(onePod("owner", `secretName: s`))
	n.expect("owner", "", show("/v/key"), "1000:0 400\nv1")
	// Two containers with different users mount the volume.
	pod := parsePod(t, onePod("unclear", `secretName: s`))
	other := int64(2000)
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
		Name: "other", Image: podImage, SecurityContext: &corev1.SecurityContext{RunAsUser: &other},
		VolumeMounts: pod.Spec.Containers[0].VolumeMounts,
	})
	n.createPod(pod)
	n.ready("unclear")
	n.expect("unclear", "main", "stat -L -c %u:%g /v/key", "0:0")
	n.event("unclear", "VolumeOwnerUnknown",
		"the containers that mount the volume do not have one runAsUser in common; set uid in volumeAttributes")
}

// testSidecar checks that a sidecar with another user that does not mount the volume does not change the owner of the
// files.
func testSidecar(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(`
metadata: {name: native-sidecar}
spec:
  securityContext: {runAsUser: 1000, fsGroup: 1337}
  initContainers:
  - name: proxy
    image: ` + podImage + `
    restartPolicy: Always
    securityContext: {runAsUser: 1337}
  containers:
  - name: main
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  - name: v
    csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s}}`)
	n.expect("native-sidecar", "main", show("/v/key"), "1000:1337 400\nv1")
}

func testTwoUsers(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(`
metadata: {name: two}
spec:
  containers:
  - name: a
    securityContext: {runAsUser: 1001}
    volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}]
  - name: b
    securityContext: {runAsUser: 1002}
    volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}]
  volumes:
  - name: a
    csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s, uid: "1001"}}
  - name: b
    csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s, uid: "1002"}}`)
	n.expect("two", "a", "cat /a/key; echo; cat /b/key", "v1\ncat: can't open '/b/key': Permission denied")
	n.expect("two", "b", "cat /b/key; echo; cat /a/key", "v1\ncat: can't open '/a/key': Permission denied")
}

func testUserNamespace(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(strings.Replace(watchingPod("userns", `secretName: s, gid: "1000", mode: "0600"`), "spec:",
		"spec:\n  hostUsers: false", 1))
	n.expect("userns", "", "cat /proc/self/uid_map | awk '{print ($2 > 0)}'; "+show("/v/key"), "1\n1000:1000 600\nv1")
	n.changeSecret("s", "key", "v2")
	n.waitSaid("userns", "/v/key v2")
	n.expect("userns", "", show("/v/key"), "1000:1000 600\nv2")
}

func testFSGroup(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	n.run(strings.Replace(onePod("fsgroup", `secretName: s, uid: "1000"`), "runAsUser: 1000",
		"runAsUser: 1000, fsGroup: 3000", 1))
	n.expect("fsgroup", "", show("/v/key")+"; id -G", "1000:3000 400\nv1\n0 3000")
}

func testRestricted(t *testing.T) {
	t.Parallel()
	n := newNamespace(t, "pod-security.kubernetes.io/enforce=restricted")
	n.secret("s", "key", "v1")
	n.run(strings.Replace(onePod("restricted", `secretName: s, mode: "0600"`), "- name: main", `- name: main
    securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]},
      seccompProfile: {type: RuntimeDefault}}`, 1))
	n.expect("restricted", "", show("/v/key"), "1000:0 600\nv1")
}

// testRefused checks that kubectl apply of a wrong volume fails. If no policy checks the pod, its Event has the same
// words.
func testRefused(t *testing.T) {
	t.Parallel()
	n, checked := newNamespace(t, uncheckedLabel+"=true"), newNamespace(t)
	n.secret("s", "key", "v1")
	for manifest, words := range map[string][]string{
		onePod("wrong", `secretName: s, mod: "0400", mode: "9", namespace: kube-system`): {"mod", "mode", "namespace"},
		withCSI(onePod("writable", `secretName: s`), "readOnly: false"):                  {"set csi.readOnly: true"},
		onePod("nowhere",
			`volume: nowhere`): {"the pod has no volume of this name"},
		describedPod("scratch", `emptyDir: {}`, ""): {"none of secret, configMap, downwardAPI and projected"},
		onePod("two",
			`secretName: s, configMapName: s`): {"only one of secretName, configMapName, volume and nodePublishSecretRef"},
	} {
		n.event(n.create(manifest).Name, "FailedMount", words...)
		_, err := client.CoreV1().Pods(checked.name).Create(suite, parsePod(t, manifest), metav1.CreateOptions{})
		for _, word := range append(words, "attributes.fsuser.csi.io") {
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), word) {
				t.Errorf("error %v; want one of the policy that says %q", err, word)
			}
		}
	}
}

// testLatency compares the driver with a secret volume of Kubernetes, which kubelet refreshes at its own interval.
func testLatency(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	n.secret("s", "key", "v1")
	pod := parsePod(t, watchingPod("latency", `secretName: s`))
	main := &pod.Spec.Containers[0]
	main.Command = append(main.Command, "/intree/key")
	main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "intree", MountPath: "/intree"})
	pod.Spec.Volumes = append(pod.Spec.Volumes,
		corev1.Volume{Name: "intree", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}})
	n.createPod(pod)
	n.waitSaid("latency", "/intree/key v1")
	// Just after its start, kubelet syncs a pod more often than later.
	n.ready("latency")
	n.changeSecret("s", "key", "v2")
	if _, err := n.said(3*time.Minute, "latency", "/intree/key v2"); err != nil {
		t.Fatal(err)
	}
	seen, seenInTree := n.onLine("latency", "/v/key v3"), n.onLine("latency", "/intree/key v3")
	begin := time.Now()
	n.changeSecret("s", "key", "v3")
	ours := n.wait(seen, "the new content").Sub(begin)
	inTree := n.wait(seenInTree, "the new content in the secret volume")
	t.Logf("a changed Secret is seen in the container after at most %d ms; in a secret volume of Kubernetes after %d ms",
		ours.Milliseconds(), inTree.Sub(begin).Milliseconds())
	if ours > 10*time.Second {
		t.Errorf("the change took %s", ours)
	}
}

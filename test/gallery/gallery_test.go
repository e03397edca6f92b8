// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package gallery

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// harness is the namespace in which the programs run.
type harness struct {
	kubernetes.Interface
	namespace string
	peer      string // the counterpart's address
}

func TestGallery(t *testing.T) {
	h := newHarness(t)
	password := rand.Text()
	h.startCounterpart(t, password)
	keys, versions := h.forge(t, password)
	seen := make([]finding, len(programs))
	t.Run("programs", func(t *testing.T) {
		for i, p := range programs {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				seen[i] = h.show(t, i, p, keys[i])
				seen[i].version = versions[p.packages[0]]
			})
		}
	})
	if t.Failed() || slices.ContainsFunc(seen, finding.incomplete) {
		t.Log("docs/gallery.md stays as it was")
		return
	}
	version, err := h.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("..", "..", "docs", "gallery.md"), []byte(document(seen, version.GitVersion)),
		0o644); err != nil {
		t.Fatal(err)
	}
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(),
		nil).ClientConfig()
	if err != nil {
		t.Fatalf("the gallery needs KUBECONFIG of a cluster, or go run ./test/gallery/run: %v", err)
	}
	config.QPS, config.Burst = 50, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.StorageV1().CSIDrivers().Get(t.Context(), attributes.Driver, metav1.GetOptions{}); err != nil {
		t.Fatalf("the driver is not installed: %v", err)
	}
	h := &harness{Interface: client, namespace: "gallery-" + strings.ToLower(rand.Text()[:8])}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: h.namespace}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.end(t) })
	h.until(t, "the namespace's service account", func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(h.namespace).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, ignoreNotFound(err)
	})
	return h
}

// end deletes the namespace and everything in it, and waits until it is gone.
func (h *harness) end(t *testing.T) {
	if err := h.CoreV1().Namespaces().Delete(context.Background(), h.namespace, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
		return
	}
	h.until(t, "the end of the namespace", func(ctx context.Context) (bool, error) {
		_, err := h.CoreV1().Namespaces().Get(ctx, h.namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err), ignoreNotFound(err)
	})
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// until polls until a condition holds. It does not use the test's context, which has ended when the test cleans up.
func (h *harness) until(t *testing.T, what string, holds func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	for {
		done, err := holds(ctx)
		if done {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("waited %s for %s in vain (last error: %v)", podTimeout, what, err)
		}
	}
}

// startCounterpart starts the pod that the clients log in to.
func (h *harness) startCounterpart(t *testing.T, password string) {
	t.Helper()
	pod := podOf("peer", "", "exec counterpart")
	postgres := *pod.Spec.Containers[0].DeepCopy()
	postgres.Name = "postgres"
	postgres.Command[2] = `
export PATH=/usr/lib/postgresql/15/bin:$PATH
echo "$PASSWORD" >/tmp/password
initdb -D /tmp/data -A scram-sha-256 -U app --pwfile=/tmp/password --no-sync
echo 'host all all all scram-sha-256' >>/tmp/data/pg_hba.conf
exec postgres -D /tmp/data -k /tmp -c fsync=off -c listen_addresses='*'`
	postgres.ReadinessProbe = &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/usr/lib/postgresql/15/bin/pg_isready",
			"-h", "127.0.0.1"}}},
		PeriodSeconds: 1,
	}
	pod.Spec.Containers = append(pod.Spec.Containers, postgres)
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		c.Env = append(c.Env, corev1.EnvVar{Name: "PASSWORD", Value: password})
	}
	h.createPod(t, pod)
	peer, err := waitForPod(t.Context(), h, h.namespace, pod.Name, "readiness", ready)
	if err != nil {
		t.Fatal(err)
	}
	h.peer = peer.Status.PodIP
}

// keySet is the output of a program's forge: files by name. Update is the volume's later content.
type keySet struct{ volume, environment, update map[string][]byte }

// forge makes the keys of each program in a pod of its suite, with the programs themselves, and returns the keys and
// the versions of the packages.
func (h *harness) forge(t *testing.T, password string) ([]keySet, map[string]string) {
	t.Helper()
	sets, versions := make([]keySet, len(programs)), map[string]string{}
	for i := range sets {
		sets[i] = keySet{map[string][]byte{}, map[string][]byte{}, map[string][]byte{}}
	}
	for _, suite := range suites() {
		pod := podOf("forge"+suite, suite, forgeScript(suite))
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "PASSWORD", Value: password})
		h.createPod(t, pod)
		log, code, err := endOf(t.Context(), h, h.namespace, pod.Name)
		if err != nil {
			t.Fatal(err)
		}
		if code != 0 {
			t.Fatalf("pod %s ends with %d:\n%s", pod.Name, code, log)
		}
		for line := range strings.Lines(log) {
			f := append(strings.Fields(line), "", "", "")
			switch f[0] {
			case "VERSION":
				versions[f[1]] = f[2]
			case "FILE":
				if err := addFile(sets, f[1], f[2]); err != nil {
					t.Fatalf("file %s of pod %s: %v", f[1], pod.Name, err)
				}
			}
		}
	}
	return sets, versions
}

// forgeScript runs the forge of each program of a suite, and prints the files and the versions of the packages.
func forgeScript(suite string) string {
	var script strings.Builder
	script.WriteString("umask 077\n")
	for i, p := range programs {
		if p.suite == suite {
			fmt.Fprintf(&script, "D=/tmp/forge/%d; V=$D/volume E=$D/environment U=$D/update\nmkdir -p $V $E $U\n%s\n", i,
				p.forge)
		}
	}
	script.WriteString(`cd /tmp/forge
for file in */*/* */*/.[!.]*; do [ ! -f "$file" ] || echo "FILE $file $(base64 --wrap=0 "$file")"; done
sed 's/^/VERSION /' ` + versionsFile)
	return script.String()
}

// addFile adds a file with a path such as 3/volume/key.
func addFile(sets []keySet, path, base64Content string) error {
	content, err := base64.StdEncoding.DecodeString(base64Content)
	if err != nil {
		return err
	}
	parts := append(strings.SplitN(path, "/", 3), "", "")
	i, err := strconv.Atoi(parts[0])
	if err != nil {
		return err
	}
	switch set, name := sets[i], parts[2]; parts[1] {
	case "volume":
		set.volume[name] = content
	case "environment":
		set.environment[name] = content
	case "update":
		set.update[name] = content
	}
	return nil
}

// createPod creates a pod in the namespace.
func (h *harness) createPod(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if _, err := h.CoreV1().Pods(h.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createSecret creates a Secret in the namespace.
func (h *harness) createSecret(t *testing.T, name string, data map[string][]byte) {
	t.Helper()
	object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := h.CoreV1().Secrets(h.namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// updateWhenReady changes the Secret of a ready pod, and waits until the pod has ended. It also changes an annotation
// of the pod, because kubelet refreshes in-tree volumes at once when the pod changes, and otherwise within two minutes.
func (h *harness) updateWhenReady(t *testing.T, pod string, data map[string][]byte) {
	t.Helper()
	now, err := waitForPod(t.Context(), h, h.namespace, pod, "readiness or end",
		func(p *corev1.Pod) bool { return ready(p) || ended(p) })
	if err != nil {
		t.Fatal(err)
	}
	if ended(now) {
		return
	}
	object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: pod}, Data: data}
	if _, err := h.CoreV1().Secrets(h.namespace).Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	changes := 0
	h.until(t, "the end of pod "+pod, func(ctx context.Context) (bool, error) {
		changes++
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"changes":"%d"}}}`, changes)
		now, err := h.CoreV1().Pods(h.namespace).Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{})
		return err == nil && ended(now), err
	})
}

// show runs a program with each volume, and compares its output and exit code with the table.
func (h *harness) show(t *testing.T, number int, p program, keys keySet) finding {
	if len(keys.volume) == 0 {
		t.Fatal("the forge has made no key")
	}
	name := fmt.Sprintf("program-%d", number)
	h.createSecret(t, name+"-environment", keys.environment)
	names := slices.Sorted(maps.Keys(keys.volume))
	for key := range p.example.content {
		if _, made := keys.volume[key]; !made && !strings.Contains(key, "KEYGRIP") {
			t.Errorf("examples/%s.yaml has the key %s, the gallery has only %q", p.example.name, key, names)
		}
	}
	found := finding{program: p}
	for i, a := range p.attempts {
		t.Run("in-tree, "+a.String(), func(t *testing.T) {
			pod := h.pod(t, p, fmt.Sprintf("%s-%d", name, i), name+"-environment", keys)
			inTree(pod, pod.Name, names, a)
			pod.Spec.Containers[0].VolumeMounts = mountsOf(p.mount, names, a.subPath)
			log, code := h.run(t, pod, a.fsGroup, keys.update)
			said := regexp.MustCompile(a.says).FindString(log)
			if failed := code != 0; said == "" || failed != a.ends.fails() {
				t.Errorf("should have %s, with %q", a.ends, a.says)
			}
			found.said = append(found.said, said)
		})
	}
	t.Run("this driver", func(t *testing.T) {
		pod := h.pod(t, p, name+"-ours", name+"-environment", keys)
		// The fsGroup widens the modes of in-tree volumes.
		log, code := h.run(t, pod, true, keys.update)
		said := regexp.MustCompile(p.works).FindString(log)
		if code != 0 || said == "" {
			t.Errorf("should have worked, with %q", p.works)
		}
		for _, a := range p.attempts {
			if complaint := regexp.MustCompile(a.says).FindString(log); complaint != "" && a.ends != accepts {
				t.Errorf("says %q", complaint)
			}
		}
		found.works = said
	})
	return found
}

// pod creates a Secret with the keys, and returns the program's pod. Both have the same name.
func (h *harness) pod(t *testing.T, p program, name, environment string, keys keySet) *corev1.Pod {
	t.Helper()
	h.createSecret(t, name, keys.volume)
	pod, err := p.galleryPod(name, name, slices.Sorted(maps.Keys(keys.volume)))
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: h.peer, Hostnames: []string{"peer"}}}
	pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: environment}}}}
	return pod
}

// run runs a pod, and changes its Secret if there is an update.
func (h *harness) run(t *testing.T, pod *corev1.Pod, fsGroup bool, update map[string][]byte) (log string, code int32) {
	t.Helper()
	if fsGroup {
		pod.Spec.SecurityContext.FSGroup = new(user)
	}
	if len(update) > 0 {
		awaitsUpdate(pod)
	}
	h.createPod(t, pod)
	if len(update) > 0 {
		h.updateWhenReady(t, pod.Name, update)
	}
	log, code, err := endOf(t.Context(), h, h.namespace, pod.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ends with %d:\n%s", code, log)
	return log, code
}

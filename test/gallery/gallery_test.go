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
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// until polls until a condition holds. The test's context would not do: it has ended when the test cleans up.
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
	pod := podOf("peer", "exec counterpart")
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
	if _, err := h.CoreV1().Pods(h.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready, err := waitForPod(t.Context(), h, h.namespace, pod.Name, "readiness", func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	h.peer = ready.Status.PodIP
}

// keySet is the output of a program's forge.
type keySet struct{ volume, environment map[string][]byte }

// forge makes the keys of each program in a pod, with the programs themselves, and returns the keys and the versions of
// the packages.
func (h *harness) forge(t *testing.T, password string) ([]keySet, map[string]string) {
	t.Helper()
	var script strings.Builder
	script.WriteString("umask 077\n")
	for i, p := range programs {
		fmt.Fprintf(&script, "V=/tmp/forge/%d/volume E=/tmp/forge/%d/environment\nmkdir -p $V $E\n%s\n", i, i, p.forge)
	}
	script.WriteString(`cd /tmp/forge
for file in */*/* */volume/.[!.]*; do [ ! -f "$file" ] || echo "FILE $file $(base64 --wrap=0 "$file")"; done
sed 's/^/VERSION /' ` + versionsFile)
	pod := podOf("forge", script.String())
	pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "PASSWORD", Value: password})
	log, code, err := runPod(t.Context(), h, h.namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		t.Fatalf("the forge ends with %d:\n%s", code, log)
	}
	sets, versions := make([]keySet, len(programs)), map[string]string{}
	for i := range sets {
		sets[i] = keySet{map[string][]byte{}, map[string][]byte{}}
	}
	for line := range strings.Lines(log) {
		f := append(strings.Fields(line), "", "", "")
		switch f[0] {
		case "VERSION":
			versions[f[1]] = f[2]
		case "FILE":
			content, err := base64.StdEncoding.DecodeString(f[2])
			if err != nil {
				t.Fatalf("file %s of the forge: %v", f[1], err)
			}
			var i int
			path := strings.SplitN(f[1], "/", 3)
			if _, err := fmt.Sscan(path[0], &i); err != nil {
				t.Fatal(err)
			}
			if path[1] == "volume" {
				sets[i].volume[path[2]] = content
			} else {
				sets[i].environment[path[2]] = content
			}
		}
	}
	return sets, versions
}

// show runs a program with each volume, and checks that the program says and does what the table claims.
func (h *harness) show(t *testing.T, number int, p program, keys keySet) finding {
	if len(keys.volume) == 0 {
		t.Fatal("the forge has made no key")
	}
	name := fmt.Sprintf("program-%d", number)
	environment := name + "-environment"
	for secret, data := range map[string]map[string][]byte{name: keys.volume, environment: keys.environment} {
		object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secret}, Data: data}
		if _, err := h.CoreV1().Secrets(h.namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	names := slices.Sorted(maps.Keys(keys.volume))
	for key := range p.example.content {
		if _, made := keys.volume[key]; !made && !strings.Contains(key, "KEYGRIP") {
			t.Errorf("examples/%s.yaml has the key %s, the gallery has only %q", p.example.name, key, names)
		}
	}
	run := func(t *testing.T, suffix string, a attempt, change func(*corev1.Pod)) (string, int32) {
		pod, err := p.galleryPod(name+"-"+suffix, name, names)
		if err != nil {
			t.Fatal(err)
		}
		change(pod)
		if a.subPath {
			mountFiles(pod, names)
		}
		pod.Spec.HostAliases = []corev1.HostAlias{{IP: h.peer, Hostnames: []string{"peer"}}}
		pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: environment}}}}
		if a.fsGroup {
			pod.Spec.SecurityContext.FSGroup = new(user)
		}
		log, code, err := runPod(t.Context(), h, h.namespace, pod)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ends with %d:\n%s", code, log)
		return log, code
	}
	found := finding{program: p}
	for i, a := range p.attempts {
		t.Run("in-tree, "+a.String(), func(t *testing.T) {
			log, code := run(t, fmt.Sprint(i), a, func(pod *corev1.Pod) { inTree(pod, name, names, a.mode) })
			said := regexp.MustCompile(a.says).FindString(log)
			if failed := code != 0; said == "" || failed != (a.ends == refuses) {
				t.Errorf("should have %s, with %q", a.ends, a.says)
			}
			found.said = append(found.said, said)
		})
	}
	t.Run("this driver", func(t *testing.T) {
		// With fsGroup, which widens the modes of in-tree volumes.
		log, code := run(t, "ours", attempt{fsGroup: true}, func(*corev1.Pod) {})
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

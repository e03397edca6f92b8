// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/yaml"
)

// testLabel marks the namespaces of the tests.
const testLabel = "fsuser-csi-e2e"

// soon is the longest single wait: until a pod starts on a busy node, a line appears, or a pod is gone. Kubelet waits
// for up to 2 minutes and 2 seconds before it retries a failed mount.
const soon = 4 * time.Minute

// namespace is a namespace of a test. It is deleted when the test ends.
type namespace struct {
	name string
	t    *testing.T
}

// newNamespace creates a namespace with more labels, in the form key=value. If the tests began with access namespaces,
// the namespace has the RoleBinding for the driver.
func newNamespace(t *testing.T, labels ...string) namespace {
	t.Helper()
	n := withoutConsent(t, labels...)
	if installedFirst == manifestNamespaces {
		consent(n)
	}
	return n
}

// withoutConsent creates a namespace without the RoleBinding for the driver.
func withoutConsent(t *testing.T, labels ...string) namespace {
	t.Helper()
	meta := metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{testLabel: ""}}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		meta.Labels[key] = value
	}
	made, err := client.CoreV1().Namespaces().Create(suite, &corev1.Namespace{ObjectMeta: meta}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := namespace{made.Name, t}
	t.Cleanup(n.remove)
	// The API server refuses pods in a namespace without this service account.
	until(t, "the service account of a new namespace", "serviceaccounts", n.name, "default", &corev1.ServiceAccount{},
		func(watch.Event) (bool, error) { return true, nil })
	return n
}

// remove deletes the namespace, and logs the Events of its pods if the test failed. It does not wait until the
// namespace is gone, because nothingLeft does.
func (n namespace) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if n.t.Failed() {
		pods, _ := kubectl(ctx, "", "-n", n.name, "get", "pods", "-o", "wide")
		events, _ := kubectl(ctx, "", "-n", n.name, "get", "events", "-o",
			"custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message",
			"--field-selector=type=Warning,reason!=MissingClusterDNS")
		log, _ := kubectl(ctx, "", "-n", driverNamespace, "logs", "daemonset/fsuser-csi")
		log = strings.Join(slices.DeleteFunc(strings.Split(log, "\n"),
			func(line string) bool { return !strings.Contains(line, n.name) }), "\n")
		n.t.Logf("pods:\n%s\nwarnings:\n%s\nthe driver's log of them:\n%s", pods, tail(events, 20), tail(log, 40))
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, n.name, metav1.DeleteOptions{}); err != nil {
		n.t.Errorf("delete the namespace: %v", err)
	}
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// within returns a context for one wait. The cause of its end names what the test waited for.
func within(t *testing.T, d time.Duration, what string) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeoutCause(suite, d, fmt.Errorf("waited %s for %s", d, what))
}

// until watches one object until the condition holds, and returns it.
func until[T runtime.Object](t *testing.T, what, resource, namespace, name string, object T,
	condition watchtools.ConditionFunc) T {
	t.Helper()
	got, err := untilErr(t, soon, what, resource, namespace, name, object, condition)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func untilErr[T runtime.Object](t *testing.T, d time.Duration, what, resource, namespace, name string, object T,
	condition watchtools.ConditionFunc) (T, error) {
	t.Helper()
	ctx, cancel := within(t, d, what)
	defer cancel()
	var zero T
	last, err := watchtools.UntilWithSync(ctx, listWatch(restFor(resource), resource, namespace, name), object, nil,
		condition)
	if ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	if err != nil {
		return zero, fmt.Errorf("wait for %s: %w", what, err)
	}
	got, _ := last.Object.(T)
	return got, nil
}

func restFor(resource string) cache.Getter {
	switch resource {
	case "deployments":
		return client.AppsV1().RESTClient()
	case "csinodes":
		return client.StorageV1().RESTClient()
	}
	return client.CoreV1().RESTClient()
}

func listWatch(getter cache.Getter, resource, namespace, name string) *cache.ListWatch {
	selector := fields.Everything()
	if name != "" {
		selector = fields.OneTermEqualSelector(metav1.ObjectNameField, name)
	}
	return cache.NewListWatchFromClient(getter, resource, namespace, selector)
}

// parsePod reads the manifest of a pod for the node under test. Containers without an image get POD_IMAGE.
func parsePod(t *testing.T, manifest string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(manifest), pod); err != nil {
		t.Fatalf("%v in\n%s", err, manifest)
	}
	finish(&pod.Spec)
	return pod
}

func finish(spec *corev1.PodSpec) {
	for i := range spec.Containers {
		if spec.Containers[i].Image == "" {
			spec.Containers[i].Image = podImage
		}
	}
	complete(spec)
	spec.NodeSelector = map[string]string{corev1.LabelHostname: nodeName}
	if spec.TerminationGracePeriodSeconds == nil {
		grace := int64(5)
		spec.TerminationGracePeriodSeconds = &grace
	}
}

// create creates the pod of a manifest.
func (n namespace) create(manifest string) *corev1.Pod {
	n.t.Helper()
	return n.createPod(parsePod(n.t, manifest))
}

func (n namespace) createPod(pod *corev1.Pod) *corev1.Pod {
	n.t.Helper()
	complete(&pod.Spec)
	made, err := client.CoreV1().Pods(n.name).Create(suite, pod, metav1.CreateOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return made
}

// run creates the pod of a manifest and waits until it is ready.
func (n namespace) run(manifest string) *corev1.Pod {
	n.t.Helper()
	return n.ready(n.create(manifest).Name)
}

func (n namespace) ready(pod string) *corev1.Pod {
	n.t.Helper()
	return until(n.t, "pod "+pod+" to be ready", "pods", n.name, pod, &corev1.Pod{}, func(e watch.Event) (bool, error) {
		p, ok := e.Object.(*corev1.Pod)
		return ok && isReady(p), nil
	})
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// touch makes kubelet sync the pod now: kubelet refreshes Kubernetes' volumes and republishes the driver's. Without a
// change of the pod, that happens after 60 to 90 s.
func (n namespace) touch(pod string) {
	n.t.Helper()
	annotations(fmt.Sprintf(`{"touched":"%d"}`, time.Now().UnixNano()))(n, pod)
}

// delete deletes pods and waits until they are gone.
func (n namespace) delete(pods ...string) {
	n.t.Helper()
	for _, pod := range pods {
		if err := client.CoreV1().Pods(n.name).Delete(suite, pod, metav1.DeleteOptions{}); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, pod := range pods {
		n.gone(pod)
	}
}

func (n namespace) gone(pod string) {
	n.t.Helper()
	if err := n.goneWithin(soon, pod); err != nil {
		n.t.Fatal(err)
	}
}

// goneWithin waits until the pod is gone. Without a name, it waits until all pods are gone.
func (n namespace) goneWithin(d time.Duration, pod string) error {
	ctx, cancel := within(n.t, d, "pod "+pod+" to be gone")
	defer cancel()
	none := func(store cache.Store) (bool, error) { return len(store.List()) == 0, nil }
	left := map[string]bool{}
	_, err := watchtools.UntilWithSync(ctx, listWatch(client.CoreV1().RESTClient(), "pods", n.name, pod), &corev1.Pod{},
		none, func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				return false, nil
			}
			if e.Type != watch.Deleted {
				left[p.Name] = true
				return false, nil
			}
			delete(left, p.Name)
			return len(left) == 0, nil
		})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// secret creates a Secret.
func (n namespace) secret(name string, keysAndValues ...string) *corev1.Secret {
	n.t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: pairs(keysAndValues)}
	made, err := client.CoreV1().Secrets(n.name).Create(suite, s, metav1.CreateOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return made
}

func (n namespace) changeSecret(name string, keysAndValues ...string) {
	n.t.Helper()
	s, err := client.CoreV1().Secrets(n.name).Get(suite, name, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	s.Data, s.StringData = nil, pairs(keysAndValues)
	if _, err := client.CoreV1().Secrets(n.name).Update(suite, s, metav1.UpdateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func (n namespace) configMap(name string, keysAndValues ...string) {
	n.t.Helper()
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: pairs(keysAndValues)}
	if _, err := client.CoreV1().ConfigMaps(n.name).Create(suite, c, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func pairs(keysAndValues []string) map[string]string {
	m := map[string]string{}
	for i := 0; i+1 < len(keysAndValues); i += 2 {
		m[keysAndValues[i]] = keysAndValues[i+1]
	}
	return m
}

// sh runs a shell script in a container and returns its standard output and error, whether it fails or not.
func (n namespace) sh(pod, container, script string) string {
	n.t.Helper()
	ctx, cancel := within(n.t, time.Minute, "a command in pod "+pod)
	defer cancel()
	args := []string{"-n", n.name, "exec", pod}
	if container != "" {
		args = append(args, "-c", container)
	}
	cmd := exec.CommandContext(ctx, "kubectl", append(args, "--", "sh", "-c", "exec 2>&1; "+script)...)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		n.t.Fatal(context.Cause(ctx))
	}
	text := strings.TrimSpace(strings.ReplaceAll(out.String(),
		fmt.Sprintf("command terminated with exit code %d\n", cmd.ProcessState.ExitCode()), ""))
	if err != nil && (text == "" || strings.Contains(text, "rror from server") || strings.Contains(text, "error:")) {
		n.t.Fatalf("kubectl exec %s: %v\n%s", pod, err, out.String())
	}
	return text
}

// expect compares the output of a script in a container.
func (n namespace) expect(pod, container, script, want string) {
	n.t.Helper()
	if got := n.sh(pod, container, script); got != want {
		n.t.Errorf("%s %s prints\n%s\nwant\n%s", pod, container, got, want)
	}
}

// untilPrints waits until a script has this output in a container, for a change without any other sign.
func (n namespace) untilPrints(pod, script, want string) {
	n.t.Helper()
	deadline := time.Now().Add(soon)
	for {
		got := n.sh(pod, "", script)
		if got == want {
			return
		}
		if time.Now().After(deadline) || suite.Err() != nil {
			n.t.Fatalf("%s: %s printed %q for %s, want %q", pod, script, got, soon, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// said waits until a container has printed a line. It returns the time when the test read the line, which is an upper
// bound. pod is the name of a pod with one container, or pod/container.
func (n namespace) said(d time.Duration, pod, line string) (time.Time, error) {
	ctx, cancel := within(n.t, d, fmt.Sprintf("pod %s to print %q", pod, line))
	defer cancel()
	var last string
	for {
		at, found, err := n.read(ctx, pod, line, &last)
		if found {
			return at, nil
		}
		if ctx.Err() != nil {
			return at, fmt.Errorf("%w (last line: %q)", context.Cause(ctx), last)
		}
		// The stream ends with kubelet, and it ends at once before the container has started.
		select {
		case <-ctx.Done():
			return at, fmt.Errorf("%w (last line: %q, last error: %w)", context.Cause(ctx), last, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// follow opens the log of a container.
func (n namespace) follow(ctx context.Context, pod string) (io.ReadCloser, error) {
	name, container, _ := strings.Cut(pod, "/")
	return client.CoreV1().Pods(n.name).GetLogs(name,
		&corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
}

func (n namespace) read(ctx context.Context, pod, line string, last *string) (time.Time, bool, error) {
	stream, err := n.follow(ctx, pod)
	if err != nil {
		return time.Time{}, false, err
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		*last = lines.Text()
		if *last == line {
			return time.Now(), true, nil
		}
	}
	return time.Time{}, false, lines.Err()
}

// waitSaid is said. The test fails if the line does not come.
func (n namespace) waitSaid(pod, line string) time.Time {
	n.t.Helper()
	at, err := n.said(soon, pod, line)
	if err != nil {
		n.t.Fatal(err)
	}
	return at
}

// onLine opens a container's log and sends the time at which the test reads the line, which is an upper bound.
func (n namespace) onLine(pod, line string) (seen <-chan time.Time) {
	n.t.Helper()
	ctx, cancel := within(n.t, 3*time.Minute, fmt.Sprintf("pod %s to print %q", pod, line))
	stream, err := n.follow(ctx, pod)
	if err != nil {
		cancel()
		n.t.Fatal(err)
	}
	found := make(chan time.Time, 1)
	go func() {
		defer close(found)
		defer cancel()
		defer stream.Close()
		for lines := bufio.NewScanner(stream); lines.Scan(); {
			if lines.Text() == line {
				found <- time.Now()
				return
			}
		}
	}()
	return found
}

// wait receives from the channel of onLine.
func (n namespace) wait(seen <-chan time.Time, what string) time.Time {
	n.t.Helper()
	at, ok := <-seen
	if !ok {
		n.t.Fatalf("not printed: %s", what)
	}
	return at
}

// event waits for an Event of the pod with this reason whose message contains all the words.
func (n namespace) event(pod, reason string, words ...string) string {
	n.t.Helper()
	return n.eventOf(pod, []string{reason}, words...)
}

// eventOf is event for one of several reasons.
func (n namespace) eventOf(pod string, reasons []string, words ...string) string {
	n.t.Helper()
	what := fmt.Sprintf("an event %s of pod %s with %q", strings.Join(reasons, " or "), pod, words)
	messages := map[string]bool{}
	got, err := untilErr(n.t, soon, what, "events", n.name, "", &corev1.Event{}, func(e watch.Event) (bool, error) {
		event, ok := e.Object.(*corev1.Event)
		if !ok || event.InvolvedObject.Name != pod || !slices.Contains(reasons, event.Reason) {
			return false, nil
		}
		messages[event.Message] = true
		for _, word := range words {
			if !strings.Contains(event.Message, word) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		n.t.Fatalf("%v; there were: %v", err, messages)
	}
	return got.Message
}

// nodeShell runs scripts as root in the host's process namespace on the node under test. The node's files are below
// /proc/1/root.
type nodeShell struct{ namespace }

func newNodeShell(t *testing.T) nodeShell {
	t.Helper()
	n := newNamespace(t, "pod-security.kubernetes.io/enforce=privileged")
	n.run(`
metadata: {name: node}
spec:
  hostPID: true
  tolerations: [{operator: Exists}]
  containers:
  - {name: main, securityContext: {privileged: true, runAsUser: 0}}`)
	return nodeShell{n}
}

func (n nodeShell) do(script string) string {
	n.t.Helper()
	return n.sh("node", "", script)
}

// driverPID returns shell code for the process id of the driver on the node under test. A "fsuser-csi status" of
// another test has the same process name, and the first node of the tests' own cluster sees the processes of all nodes.
func driverPID() string {
	return `$(for p in $(pidof fsuser-csi); do
		tr '\0' '\n' < /proc/$p/cmdline | grep -qx node &&
		tr '\0' '\n' < /proc/$p/environ | grep -qx NODE_NAME=` + nodeName + ` && echo $p
	done 2>/dev/null)`
}

// driverPod waits for a ready pod of the driver on the node under test whose uid is not in the list, and returns the
// pod.
func driverPod(t *testing.T, not ...string) *corev1.Pod {
	t.Helper()
	return until(t, "the driver's pod to be ready", "pods", driverNamespace, "", &corev1.Pod{},
		func(e watch.Event) (bool, error) {
			p, ok := e.Object.(*corev1.Pod)
			return ok && e.Type != watch.Deleted && p.Spec.NodeName == nodeName && isReady(p) && p.DeletionTimestamp == nil &&
				!slices.Contains(not, string(p.UID)), nil
		})
}

// metrics reads the driver's metrics from within the cluster's network, as Prometheus does.
func metrics(t *testing.T, from namespace, pod string) string {
	t.Helper()
	return from.sh(pod, "", "/pod get http://"+driverPod(t).Status.PodIP+":9808/metrics")
}

// clientConfig returns the configuration of a client that has only a token. If impersonate is set, it acts as that
// user.
func clientConfig(token, impersonate string) *rest.Config {
	c := rest.AnonymousClientConfig(config)
	c.BearerToken = token
	c.Impersonate.UserName = impersonate
	return c
}

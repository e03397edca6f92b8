// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

const (
	annotationFSUser = "fsuser.csi.io/fs-user"
	// fsUser owns the files of the annotated pods.
	fsUser = 1000
)

// comparison is a pod with volumes of Kubernetes that is created twice: unchanged, and with the annotation that moves
// its volumes behind volumes of the driver. The container must see the same in both, except for the owner and for the
// differences that docs/compatibility.md lists.
type comparison struct {
	// name is the name of the pod, and of its objects.
	name string
	// volumes is YAML, indented by two spaces. NAME is replaced by the name. Volume v is mounted at /v.
	volumes string
	// spec changes the pod.
	spec func(*corev1.PodSpec)
	// before creates the objects that exist before the pod.
	before []edit
	// waits are words of kubelet's FailedMount Events while neither pod starts. The first step lets both start.
	waits []string
	// shows has the files of /v at the start.
	shows files
	steps []step
	// also has more paths to compare.
	also []string
	// differs lists the intended differences.
	differs []difference
}

// files has bytes by path.
type files map[string]string

// step changes objects, and has the files of /v afterwards.
type step struct {
	name    string
	changes []edit
	// told are words of an Event of each pod that can't be refreshed.
	told  []string
	shows files
}

// edit changes an object of a comparison in one of the two namespaces.
type edit func(n namespace, name string)

// difference is an intended difference.
type difference struct {
	// row is the row of docs/compatibility.md.
	row string
	// apply returns the driver's entry for an entry of Kubernetes' volume.
	apply func(tree.Entry) tree.Entry
}

// testCompare creates all pods at once, in a namespace for Kubernetes and one for the driver.
func testCompare(t *testing.T) {
	since136(t, "the policy fs-user ("+MutatingPolicies+")")
	applyFSUser(t)
	kubernetes, driver := newNamespace(t), newNamespace(t)
	begin := time.Now()
	all := comparisons(t)
	for _, c := range all {
		c.create(t, kubernetes, driver)
	}
	t.Run("pods", func(t *testing.T) {
		for _, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				pair{t, c, on(t, kubernetes), on(t, driver)}.run()
			})
		}
		for _, more := range []struct {
			name string
			run  func(t *testing.T, kubernetes, driver namespace)
		}{
			{"workloads", compareWorkloads},
			{"an ephemeral container", compareEphemeralContainer},
			{"subPath that is missing", compareMissingSubPath},
			{"a volume mounted beneath", compareNestedMount},
			{"the same key twice", compareSameKeyTwice},
			{"a write", compareWrite},
			{"statistics", compareStatistics},
			{"a token stays with Kubernetes", compareToken},
			{"examples", func(t *testing.T, _, _ namespace) { testExamples(t) }},
			{"kubectl apply twice", func(t *testing.T, _, driver namespace) { applyTwice(t, driver) }},
		} {
			t.Run(more.name, func(t *testing.T) {
				t.Parallel()
				more.run(t, on(t, kubernetes), on(t, driver))
			})
		}
	})
	t.Logf("%d volumes compared in %.1f s", len(all), time.Since(begin).Seconds())
}

// on returns the namespace for a subtest, which reports its own failures.
func on(t *testing.T, n namespace) namespace { return namespace{n.name, t} }

// applyFSUser installs the policy until t ends, and waits until the API server applies it.
func applyFSUser(t *testing.T) {
	t.Helper()
	if _, err := kubectl(suite, "", "apply", "-f", manifestFSUser); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := kubectl(suite, "", "delete", "-f", manifestFSUser); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := within(t, 30*time.Second, "the policy fs-user to take effect")
	defer cancel()
	probe := parsePod(t, `
metadata: {name: probe}
spec:
  containers: [{name: main, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, secret: {secretName: probe}}]`)
	annotate(&probe.ObjectMeta)
	for {
		made, err := client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, probe,
			metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && made.Spec.Volumes[0].CSI != nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%v (last answer: %v)", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func annotate(meta *metav1.ObjectMeta) {
	meta.Annotations = map[string]string{annotationFSUser: strconv.Itoa(fsUser)}
}

// create creates the objects and both pods.
func (c comparison) create(t *testing.T, kubernetes, driver namespace) {
	t.Helper()
	for _, change := range c.before {
		change(kubernetes, c.name)
		change(driver, c.name)
	}
	pod := parsePod(t, strings.ReplaceAll(`
metadata: {name: NAME, labels: {color: red}}
spec:
  containers:
  - name: main
    volumeMounts: [{name: v, mountPath: /v}]
  volumes:
  `+c.volumes, "NAME", c.name))
	if c.spec != nil {
		c.spec(&pod.Spec)
	}
	plain := kubernetes.createPod(pod)
	annotate(&pod.ObjectMeta)
	moved(t, plain, driver.createPod(pod))
}

// moved checks that each volume of files of the first pod is behind a volume of the driver in the second pod. Otherwise
// the comparison would compare Kubernetes' volume with itself.
func moved(t *testing.T, plain, annotated *corev1.Pod) {
	t.Helper()
	volumes := map[string]corev1.VolumeSource{}
	for _, v := range annotated.Spec.Volumes {
		volumes[v.Name] = v.VolumeSource
	}
	for _, v := range plain.Spec.Volumes {
		if v.CSI != nil {
			t.Errorf("volume %s of pod %s is not Kubernetes': %+v", v.Name, plain.Name, v.VolumeSource)
		}
		if v.EmptyDir != nil || strings.HasPrefix(v.Name, "kube-api-access-") {
			continue
		}
		csi := volumes[v.Name].CSI
		if csi == nil || csi.Driver != driverName {
			t.Errorf("volume %s of the annotated pod %s is not the driver's: %+v", v.Name, plain.Name, volumes[v.Name])
			continue
		}
		described := volumes[csi.VolumeAttributes["volume"]]
		if !equality.Semantic.DeepEqual(described, v.VolumeSource) {
			t.Errorf("volume %s of the annotated pod %s is described by\n%+v\nwant\n%+v", v.Name, plain.Name, described,
				v.VolumeSource)
		}
	}
}

// pair is a running comparison.
type pair struct {
	t *testing.T
	comparison
	kubernetes, driver namespace
}

// start creates the pods of a pair that is not in the table of comparisons.
func (p pair) start() pair {
	p.t.Helper()
	p.create(p.t, p.kubernetes, p.driver)
	return p
}

func (p pair) run() {
	if p.waits != nil {
		p.bothAreTold(nil, p.waits...)
		for _, n := range []namespace{p.kubernetes, p.driver} {
			if made := podOf(n, p.name); made.Status.Phase != corev1.PodPending {
				p.t.Errorf("pod %s is %s", p.name, made.Status.Phase)
			}
		}
		p.do(p.steps[0])
		p.shows, p.steps = p.steps[0].shows, p.steps[1:]
	}
	p.kubernetes.ready(p.name)
	p.driver.ready(p.name)
	p.agree("at the start", p.shows)
	for _, s := range p.steps {
		p.do(s)
		if s.told != nil {
			p.bothAreTold([]string{"VolumeRefreshFailed", "VolumeObjectMissing"}, s.told...)
		}
		p.agree("after the step: "+s.name, s.shows)
	}
}

func (p pair) do(s step) {
	for _, change := range s.changes {
		change(p.kubernetes, p.name)
		change(p.driver, p.name)
	}
	p.touch()
}

func podOf(n namespace, name string) *corev1.Pod {
	n.t.Helper()
	p, err := client.CoreV1().Pods(n.name).Get(suite, name, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (p pair) touch() {
	p.t.Helper()
	p.kubernetes.touch(p.name)
	p.driver.touch(p.name)
}

// bothAreTold waits until an Event of each pod has the words: a FailedMount of kubelet, or for the driver's pod an
// Event with one of these reasons.
func (p pair) bothAreTold(reasons []string, words ...string) {
	p.t.Helper()
	p.kubernetes.event(p.name, "FailedMount", words...)
	if reasons == nil {
		p.driver.event(p.name, "FailedMount", words...)
		return
	}
	p.driver.eventOf(p.name, reasons, words...)
}

// agree waits until both pods show the files and the driver's whole volume equals Kubernetes'.
func (p pair) agree(when string, want files) {
	p.t.Helper()
	texts := map[string]string{}
	for path, text := range want {
		texts[path] = tree.Text([]byte(text))
	}
	deadline, touched := time.Now().Add(soon/2), time.Now()
	for {
		err := p.compare(texts)
		if err == nil {
			return
		}
		if time.Now().After(deadline) || suite.Err() != nil {
			p.t.Fatalf("%s: %v", when, err)
		}
		// Kubelet may have synced the pod before its watch delivered the change of the object.
		if time.Since(touched) > 2*time.Second {
			p.touch()
			touched = time.Now()
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (p pair) compare(want map[string]string) error {
	paths := append([]string{"/v"}, p.also...)
	listings, err := both(p.kubernetes, p.driver,
		func(n namespace) (map[string][]tree.Entry, error) { return listingOf(n, p.name, "main", paths...) })
	if err != nil {
		return err
	}
	for i, who := range []string{"Kubernetes' volume", "the driver's volume"} {
		if got := tree.Files(listings[i]["/v"]); !maps.Equal(got, want) {
			return fmt.Errorf("%s shows %q, want %q", who, got, want)
		}
	}
	var problems []error
	for _, path := range paths {
		problems = append(problems, p.equal(path, listings[0][path], listings[1][path]))
	}
	return errors.Join(problems...)
}

// equal compares two listings, entry by entry.
func (c comparison) equal(path string, kubernetes, driver []tree.Entry) error {
	var want, got []string
	for _, e := range kubernetes {
		if e.Type != "?" {
			e.UID = fsUser
		}
		for _, d := range append(differencesOfAll(), c.differs...) {
			e = d.apply(e)
		}
		want = append(want, e.String())
	}
	for _, e := range driver {
		got = append(got, e.String())
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s of the driver:\n  %s\nwant, from Kubernetes' own:\n  %s", path, strings.Join(got, "\n  "),
			strings.Join(want, "\n  "))
	}
	return nil
}

// both calls do for both namespaces at the same time.
func both[T any](kubernetes, driver namespace, do func(namespace) (T, error)) (results [2]T, err error) {
	var running sync.WaitGroup
	var errs [2]error
	for i, n := range []namespace{kubernetes, driver} {
		running.Go(func() { results[i], errs[i] = do(n) })
	}
	running.Wait()
	return results, errors.Join(errs[:]...)
}

// listingOf returns the files that a container sees below paths.
func listingOf(n namespace, pod, container string, paths ...string) (map[string][]tree.Entry, error) {
	ctx, cancel := within(n.t, time.Minute, "a listing in pod "+pod)
	defer cancel()
	out, err := kubectl(ctx, "", append([]string{"-n", n.name, "exec", pod, "-c", container, "--", "/pod", "list"},
		paths...)...)
	if err != nil {
		return nil, err
	}
	return parseListing(out)
}

func parseListing(text string) (all map[string][]tree.Entry, err error) {
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("%w in %s", err, text)
	}
	return all, nil
}

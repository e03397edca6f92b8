// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fsuser-csi/fsuser-csi/deploy"
	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

const (
	driverName      = "fsuser.csi.io"
	driverNamespace = "fsuser-csi"
	// The manifests of the kinds of access.
	manifestNode       = "../../deploy/fsuser-csi.yaml"
	manifestNamespaces = "../../deploy/fsuser-csi-namespaces.yaml"
	manifestCluster    = "../../deploy/fsuser-csi-DANGER-cluster-wide-secrets.yaml"
	// manifestFSUser has the policy that moves the volumes of annotated pods behind volumes of the driver.
	manifestFSUser = "../../deploy/fsuser-csi-fs-user.yaml"
	chart          = "../../deploy/chart"
)

// The cluster under test, set once by TestMain.
var (
	// suite ends when the tests are interrupted.
	suite  context.Context
	config *rest.Config
	client kubernetes.Interface
	// image is the image of the driver, and podImage the image of the tests' pods.
	image, podImage string
	// clusterDir is the run directory of a cluster that the tests have started. It is empty for any other cluster.
	clusterDir string
	// nodeName is the node under test. All pods run there, except those of testNodes.
	nodeName string
	// nodes are the nodes of the tests' own cluster.
	nodes []*cluster.Node
	// server is the version of the API server.
	server *version.Version
	// installedFirst is the manifest that TestE2E installs first.
	installedFirst string
)

func TestMain(m *testing.M) {
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	var stop context.CancelFunc
	suite, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := connect(); err != nil {
		return 1, err
	}
	if installedFirst, err = chooseAccess(); err != nil {
		return 1, err
	}
	if err := refuseInstalled(); err != nil {
		return 1, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, cleanUp(ctx))
	}()
	return m.Run(), nil
}

func connect() (err error) {
	for name, value := range map[string]*string{"IMAGE": &image, "POD_IMAGE": &podImage} {
		if *value = os.Getenv(name); *value == "" {
			return fmt.Errorf("%s is not set; run the tests with: go run ./test/e2e/run", name)
		}
	}
	if clusterDir = os.Getenv("CLUSTER_DIR"); clusterDir != "" {
		own, err := cluster.Open(clusterDir)
		if err != nil {
			return err
		}
		if nodes, err = own.Nodes(); err != nil {
			return err
		}
	}
	if config, err = clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")); err != nil {
		return fmt.Errorf("KUBECONFIG: %w", err)
	}
	config.QPS, config.Burst = -1, -1
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err := findServer(); err != nil {
		return err
	}
	all, err := client.CoreV1().Nodes().List(suite, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range all.Items {
		if !n.Spec.Unschedulable && len(n.Spec.Taints) == 0 {
			nodeName = n.Name
			return nil
		}
	}
	return errors.New("there is no node that takes every pod")
}

// refuseInstalled returns an error if the cluster has an installation that these tests did not make.
func refuseInstalled() error {
	_, err := client.StorageV1().CSIDrivers().Get(suite, driverName, metav1.GetOptions{})
	if err == nil {
		return fmt.Errorf("the cluster has %s already; these tests install and uninstall it: uninstall it first", driverName)
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// cleanUp removes the leftovers of the tests, in the order of deploy/README.md.
func cleanUp(ctx context.Context) error {
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: testLabel})
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range namespaces.Items {
		if err := client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil &&
			!apierrors.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	if _, err := kubectl(ctx, "", "wait", "--for=delete", "namespace", "-l", testLabel, "--timeout=90s"); err != nil &&
		!strings.Contains(err.Error(), "no matching resources") {
		failed = append(failed, err)
	}
	if !before136() {
		_, err := kubectl(ctx, "", "delete", "--ignore-not-found", "-f", manifestFSUser)
		failed = append(failed, err)
	}
	for _, manifest := range manifests() {
		failed = append(failed, uninstall(ctx, manifest))
	}
	return errors.Join(failed...)
}

// uncheckedLabel is the label of namespaces in which no policy refuses pods, for tests of the driver's own refusals.
const uncheckedLabel = "e2e.fsuser.csi.io/unchecked"

// refuses is the beginning of the binding of the policy that refuses pods.
const refuses = "  policyName: attributes.fsuser.csi.io\n  validationActions: [Deny]\n  matchResources:\n"

// manifest returns a shipped manifest with another image, as kustomize or sed would make it, and with an exception for
// namespaces that have the uncheckedLabel.
func manifest(ctx context.Context, path string) (string, error) {
	content, err := shipped(ctx, path)
	if err != nil {
		return "", err
	}
	withImage, err := deploy.WithImage([]byte(content), image)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if n := strings.Count(content, refuses); n != 1 {
		return "", fmt.Errorf("%s binds the policy that refuses pods %d times, want once", path, n)
	}
	except := "    namespaceSelector: {matchExpressions: [{key: " + uncheckedLabel + ", operator: DoesNotExist}]}\n"
	return strings.Replace(string(withImage), refuses, refuses+except, 1), nil
}

// install installs the driver as deploy/README.md describes, and waits until the policies are in effect.
func install(ctx context.Context, path string) error {
	if err := apply(ctx, path); err != nil {
		return err
	}
	if err := rolledOut(ctx); err != nil {
		return err
	}
	return waitForPolicies(ctx, effect(path))
}

func apply(ctx context.Context, path string) error {
	objects, err := manifest(ctx, path)
	if err != nil {
		return err
	}
	_, err = kubectl(ctx, objects, "apply", "-f", "-")
	return err
}

func rolledOut(ctx context.Context) error {
	_, err := kubectl(ctx, "", "-n", driverNamespace, "rollout", "status", "daemonset/fsuser-csi", "--timeout=90s")
	if err == nil {
		return nil
	}
	pods, _ := kubectl(ctx, "", "-n", driverNamespace, "describe", "pods")
	logs, _ := kubectl(ctx, "", "-n", driverNamespace, "logs", "daemonset/fsuser-csi", "--tail=20")
	return fmt.Errorf("%w\n%s\n%s", err, pods, logs)
}

// mutation is the effect of the policy declare-references on a pod.
type mutation struct {
	completed bool // The policy sets csi.readOnly.
	declared  bool // The policy adds a volume for each object.
}

// waitForPolicies waits until the policy declare-references has this effect, and until the policy attributes refuses a
// wrong pod. It polls, because each API server learns of a new policy at a different time, without any sign.
func waitForPolicies(ctx context.Context, wanted mutation) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		seen, err := probePolicies(ctx)
		if err == nil && seen == wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the policies to have the effect %+v: %w (last seen: %+v, error %w)",
				wanted, context.Cause(ctx), seen, err)
		case <-ticker.C:
		}
	}
}

// probePolicies creates a correct pod and a wrong pod as dry runs.
func probePolicies(ctx context.Context) (seen mutation, err error) {
	pods, dry := client.CoreV1().Pods(metav1.NamespaceDefault), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	csi := &corev1.CSIVolumeSource{Driver: driverName, VolumeAttributes: map[string]string{"secretName": "probe"}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "main", Image: podImage}},
			Volumes:    []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: csi}}},
		},
	}
	wrong := pod.DeepCopy()
	wrong.Spec.Volumes[0].CSI.VolumeAttributes["uid"] = "wrong"
	if _, err := pods.Create(ctx, wrong, dry); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
		return seen, fmt.Errorf("create a wrong pod: error %w, want that of the policy attributes", err)
	}
	// Without the policy declare-references, the policy attributes refuses a pod that lacks csi.readOnly.
	made, err := pods.Create(ctx, pod, dry)
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		return seen, nil
	}
	if err != nil {
		return seen, err
	}
	for _, v := range made.Spec.Volumes {
		seen.completed = seen.completed || v.CSI != nil && v.CSI.ReadOnly != nil
		seen.declared = seen.declared || strings.HasPrefix(v.Name, "fsuser-csi-ref-")
	}
	return seen, nil
}

func uninstall(ctx context.Context, path string) error {
	objects, err := manifest(ctx, path)
	if err != nil {
		return err
	}
	_, err = kubectl(ctx, objects, "delete", "--ignore-not-found", "--wait", "--timeout=90s", "-f", "-")
	return err
}

// kubectl runs kubectl and returns its standard output. The error contains its standard error.
func kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

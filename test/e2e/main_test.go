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
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	driverName      = "fsuser.csi.io"
	driverNamespace = "fsuser-csi"
	// The manifests, by the kind of access.
	manifestNode       = "../../deploy/fsuser-csi.yaml"
	manifestNamespaces = "../../deploy/fsuser-csi-namespaces.yaml"
	manifestCluster    = "../../deploy/fsuser-csi-DANGER-cluster-wide-secrets.yaml"
	// manifestFSUser has the policy that gives the volumes of annotated pods to the driver.
	manifestFSUser = "../../deploy/fsuser-csi-fs-user.yaml"
	chart          = "../../deploy/chart"
)

// The cluster under test, set once by TestMain.
var (
	// suite ends when the tests are interrupted.
	suite  context.Context
	config *rest.Config
	client kubernetes.Interface
	// image is the driver's, podImage that of the tests' pods.
	image, podImage string
	// clusterDir is the run folder of a cluster that is the tests' own; empty for somebody's.
	clusterDir string
	// nodeName is the node that all pods go to.
	nodeName string
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
	if err := refuseInstalled(); err != nil {
		return 1, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, cleanUp(ctx))
	}()
	if err := install(suite, manifestNode); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func connect() (err error) {
	for name, value := range map[string]*string{"IMAGE": &image, "POD_IMAGE": &podImage} {
		if *value = os.Getenv(name); *value == "" {
			return fmt.Errorf("%s is not set; run the tests with: go run ./test/e2e/run", name)
		}
	}
	clusterDir = os.Getenv("CLUSTER_DIR")
	if config, err = clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")); err != nil {
		return fmt.Errorf("KUBECONFIG: %w", err)
	}
	config.QPS, config.Burst = -1, -1
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(suite, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		if !n.Spec.Unschedulable && len(n.Spec.Taints) == 0 {
			nodeName = n.Name
			return nil
		}
	}
	return errors.New("there is no node that takes every pod")
}

// refuseInstalled protects an installation that is not the tests'.
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

// cleanUp removes what a test left, in the order that deploy/README.md asks for.
func cleanUp(ctx context.Context) error {
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: testLabel})
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range namespaces.Items {
		if err := client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			failed = append(failed, err)
		}
	}
	if _, err := kubectl(ctx, "", "wait", "--for=delete", "namespace", "-l", testLabel, "--timeout=90s"); err != nil && !strings.Contains(err.Error(), "no matching resources") {
		failed = append(failed, err)
	}
	if _, err := kubectl(ctx, "", "delete", "--ignore-not-found", "-f", manifestFSUser); err != nil {
		failed = append(failed, err)
	}
	for _, manifest := range []string{manifestCluster, manifestNamespaces, manifestNode} {
		failed = append(failed, uninstall(ctx, manifest))
	}
	return errors.Join(failed...)
}

var imageLine = regexp.MustCompile(`image: "fsuser-csi/fsuser-csi:[^"]*"`)

// uncheckedLabel is that of namespaces in which no policy refuses pods: the driver is the wall, not the policy in front of it.
const uncheckedLabel = "e2e.fsuser.csi.io/unchecked"

// refuses is where the binding of the policy that refuses pods says in which namespaces.
const refuses = "  policyName: attributes.fsuser.csi.io\n  validationActions: [Deny]\n  matchResources:\n"

// manifest is a shipped manifest with the image replaced, as a user does with kustomize or sed, and uncheckedLabel heeded.
func manifest(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := len(imageLine.FindAll(content, -1)); n != 1 {
		return "", fmt.Errorf("%s names the driver's image %d times, want once", path, n)
	}
	if n := strings.Count(string(content), refuses); n != 1 {
		return "", fmt.Errorf("%s binds the policy that refuses pods %d times, want once", path, n)
	}
	text := strings.Replace(string(content), refuses, refuses+"    namespaceSelector: {matchExpressions: [{key: "+uncheckedLabel+", operator: DoesNotExist}]}\n", 1)
	return imageLine.ReplaceAllLiteralString(text, "image: "+image), nil
}

// install is what deploy/README.md says, and waits until new pods are declared.
func install(ctx context.Context, path string) error {
	objects, err := manifest(path)
	if err != nil {
		return err
	}
	if _, err := kubectl(ctx, objects, "apply", "-f", "-"); err != nil {
		return err
	}
	if err := rolledOut(ctx); err != nil {
		return err
	}
	return waitForPolicy(ctx, path == manifestNode)
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

// waitForPolicy waits until the API server knows of the policy that declares what pods refer to, or no longer, and of the one that refuses
// pods. There is nothing to watch:
// each API server takes it up in its own time.
func waitForPolicy(ctx context.Context, wanted bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "main", Image: podImage}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: driverName, ReadOnly: new(true), VolumeAttributes: map[string]string{"secretName": "probe"},
			}}}},
		},
	}
	for {
		made, err := client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		declared := false
		if err == nil {
			for _, v := range made.Spec.Volumes {
				declared = declared || strings.HasPrefix(v.Name, "fsuser-csi-ref-")
			}
			if declared == wanted {
				bad := pod.DeepCopy()
				bad.Spec.Volumes[0].CSI.VolumeAttributes["uid"] = "bad"
				if _, err = client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, bad, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the policy to be there (%t): %w (last answer: %w)", wanted, context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

func uninstall(ctx context.Context, path string) error {
	objects, err := manifest(path)
	if err != nil {
		return err
	}
	_, err = kubectl(ctx, objects, "delete", "--ignore-not-found", "--wait", "--timeout=90s", "-f", "-")
	return err
}

// kubectl runs kubectl and returns what it prints; the error has what it prints to standard error.
func kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

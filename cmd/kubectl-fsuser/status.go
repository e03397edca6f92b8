// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // for kubeconfigs with OpenID Connect
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

const (
	// driverLabel is on the pods of the driver, whose container has the name driverContainer.
	driverLabel     = "app.kubernetes.io/name=fsuser-csi"
	driverContainer = "fsuser-csi"

	maxQuestions  = 16 // to drivers at the same time
	answerTimeout = 30 * time.Second
)

// statusQuery says which volumes to show.
type statusQuery struct {
	driverNamespace string // empty: the driver may run in any
	namespace       string // of pods; empty: all
	pod             string // empty: all
	output          string
}

func newStatusCommand() *cobra.Command {
	var (
		q             statusQuery
		allNamespaces bool
		rules         = clientcmd.NewDefaultClientConfigLoadingRules()
		overrides     clientcmd.ConfigOverrides
	)
	cmd := &cobra.Command{
		Use:   "status [POD]",
		Short: "Show the volumes of all nodes, why a volume is stale, and why a driver's access does not work",
		Long: `status asks the drivers of all nodes for their volumes, by running "fsuser-csi status" in the driver's pods.
You need the rights to list these pods and to exec into them.

Exit codes: 0 all drivers answered, 1 a driver did not answer, 2 wrong usage, or the API server did not answer.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.output != "table" && q.output != "json" {
				return fmt.Errorf(`--output is %q; it must be "table" or "json"`, q.output)
			}
			kubeconfig := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &overrides)
			config, err := kubeconfig.ClientConfig()
			if err != nil {
				return err
			}
			if q.namespace, _, err = kubeconfig.Namespace(); err != nil {
				return err
			}
			if allNamespaces {
				q.namespace = ""
			}
			if len(args) > 0 {
				q.pod = strings.TrimPrefix(args[0], "pod/")
			}
			return q.run(cmd.Context(), config, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&allNamespaces, "all-namespaces", "A", false, "show the volumes of pods in all namespaces")
	f.StringVarP(&q.output, "output", "o", "table", `output format: "table" or "json"`)
	f.StringVar(&q.driverNamespace, "driver-namespace", "",
		"namespace of the driver (default: all namespaces are searched)")
	f.StringVar(&rules.ExplicitPath, "kubeconfig", "", "path of the kubeconfig file")
	clientcmd.BindOverrideFlags(&overrides, f, clientcmd.RecommendedConfigOverrideFlags(""))
	return cmd
}

// run shows what the drivers answer.
func (q statusQuery) run(ctx context.Context, config *rest.Config, out, errOut io.Writer) error {
	cluster, err := newCluster(config)
	if err != nil {
		return err
	}
	drivers, err := cluster.drivers(ctx, q.driverNamespace)
	if err != nil {
		return fmt.Errorf("list the driver's pods: %w", err)
	}
	if len(drivers) == 0 {
		return fmt.Errorf("no pod has the label %s: the driver is not installed, or not in --driver-namespace",
			driverLabel)
	}
	answers, errs := cluster.ask(ctx, drivers)
	nodes := []status.Node{}
	for i, driver := range drivers {
		if errs[i] != nil {
			fmt.Fprintf(errOut, "node %s: pod %s/%s: %v\n", driver.Spec.NodeName, driver.Namespace, driver.Name, errs[i])
			continue
		}
		answers[i].Volumes = slices.DeleteFunc(answers[i].Volumes, q.hides)
		nodes = append(nodes, answers[i])
	}
	if q.output == "json" {
		err = printJSON(out, nodes)
	} else {
		err = status.Table(out, nodes, time.Now())
	}
	if silent := len(drivers) - len(nodes); err == nil && silent > 0 {
		return problems("%s of %d did not answer", count(silent, "driver"), len(drivers))
	}
	return err
}

func (q statusQuery) hides(v status.Volume) bool {
	return q.namespace != "" && v.PodNamespace != q.namespace || q.pod != "" && v.PodName != q.pod
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// cluster is a client of an API server, for pods alone.
type cluster struct {
	config *rest.Config
	client rest.Interface
	codec  runtime.ParameterCodec
}

func newCluster(config *rest.Config) (*cluster, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	return &cluster{config, client, runtime.NewParameterCodec(scheme)}, err
}

// drivers returns the driver's pods, by node.
func (c *cluster) drivers(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.client.Get().Resource("pods").Namespace(namespace).Param("labelSelector", driverLabel).Do(ctx).Into(&pods)
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int {
		return strings.Compare(a.Spec.NodeName+"/"+a.Name, b.Spec.NodeName+"/"+b.Name)
	})
	return pods.Items, err
}

// ask asks several drivers at the same time for their status.
func (c *cluster) ask(ctx context.Context, drivers []corev1.Pod) (answers []status.Node, errs []error) {
	answers, errs = make([]status.Node, len(drivers)), make([]error, len(drivers))
	free := make(chan struct{}, maxQuestions)
	var running sync.WaitGroup
	for i := range drivers {
		running.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			ctx, cancel := context.WithTimeout(ctx, answerTimeout)
			defer cancel()
			answers[i], errs[i] = c.status(ctx, &drivers[i])
		})
	}
	running.Wait()
	return answers, errs
}

// status runs the driver's own status command in its pod.
func (c *cluster) status(ctx context.Context, driver *corev1.Pod) (node status.Node, err error) {
	if driver.Status.Phase != corev1.PodRunning {
		return node, fmt.Errorf("it is %s, not Running", driver.Status.Phase)
	}
	exec, err := c.executor(driver, "/fsuser-csi", "status", "-o", "json")
	if err != nil {
		return node, err
	}
	var stdout, stderr bytes.Buffer
	if err := exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			return node, fmt.Errorf("%w: %s", err, text)
		}
		return node, err
	}
	if err := json.Unmarshal(stdout.Bytes(), &node); err != nil {
		return node, fmt.Errorf("read its answer (is the plugin as new as the driver?): %w", err)
	}
	return node, nil
}

// executor runs a command over WebSocket, and over SPDY where an API server or a proxy knows no WebSocket, as kubectl
// does.
func (c *cluster) executor(pod *corev1.Pod, command ...string) (remotecommand.Executor, error) {
	url := c.client.Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").VersionedParams(
		&corev1.PodExecOptions{Container: driverContainer, Command: command, Stdout: true, Stderr: true}, c.codec).URL()
	websocket, err := remotecommand.NewWebSocketExecutor(c.config, "GET", url.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", url)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

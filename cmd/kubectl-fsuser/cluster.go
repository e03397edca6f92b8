// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"
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

// connection has the flags for the connection to the cluster and the driver.
type connection struct {
	rules           *clientcmd.ClientConfigLoadingRules
	overrides       clientcmd.ConfigOverrides
	driverNamespace string // empty means all namespaces
}

func newConnection() *connection {
	return &connection{rules: clientcmd.NewDefaultClientConfigLoadingRules()}
}

func (c *connection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.driverNamespace, "driver-namespace", "",
		"namespace of the driver (default: all namespaces are searched)")
	f.StringVar(&c.rules.ExplicitPath, "kubeconfig", "", "path of the kubeconfig file")
	clientcmd.BindOverrideFlags(&c.overrides, f, clientcmd.RecommendedConfigOverrideFlags(""))
}

// open returns a client. It makes no request.
func (c *connection) open() (*cluster, error) {
	kubeconfig := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(c.rules, &c.overrides)
	config, err := kubeconfig.ClientConfig()
	if err != nil {
		return nil, err
	}
	cluster, err := newCluster(config)
	if err != nil {
		return nil, err
	}
	cluster.driverNamespace = c.driverNamespace
	cluster.namespace, _, err = kubeconfig.Namespace()
	return cluster, err
}

// cluster is a client of an API server. It knows the types of core/v1, and reads other types as JSON.
type cluster struct {
	config *rest.Config
	client rest.Interface
	codec  runtime.ParameterCodec
	// namespace is the namespace of the flags or of the kubeconfig.
	namespace string
	// driverNamespace is empty if the driver may run in any namespace.
	driverNamespace string
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
	return &cluster{config: config, client: client, codec: runtime.NewParameterCodec(scheme)}, err
}

// read reads the JSON at a path, such as "/apis/apps/v1/daemonsets".
func read[T any](ctx context.Context, c *cluster, path, labelSelector string) (value T, err error) {
	request := c.client.Get().AbsPath(path)
	if labelSelector != "" {
		request.Param("labelSelector", labelSelector)
	}
	answer, err := request.Do(ctx).Raw()
	if err != nil {
		return value, err
	}
	return value, json.Unmarshal(answer, &value)
}

// mayDo asks the API server whether a user may perform an action.
func (c *cluster) mayDo(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (
	review authorizationv1.SubjectAccessReview, err error,
) {
	review.APIVersion, review.Kind = authorizationv1.SchemeGroupVersion.String(), "SubjectAccessReview"
	review.Spec = spec
	body, err := json.Marshal(review)
	if err != nil {
		return review, err
	}
	answer, err := c.client.Post().AbsPath("/apis/authorization.k8s.io/v1/subjectaccessreviews").
		SetHeader("Content-Type", runtime.ContentTypeJSON).Body(body).Do(ctx).Raw()
	if err != nil {
		return review, err
	}
	return review, json.Unmarshal(answer, &review)
}

// drivers returns the driver's pods, by node.
func (c *cluster) drivers(ctx context.Context) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.client.Get().Resource("pods").Namespace(c.driverNamespace).Param("labelSelector", driverLabel).
		Do(ctx).Into(&pods)
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

// status runs the driver's own status command in the driver's pod.
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

// executor returns an executor for a command. Like kubectl, it uses WebSocket, or SPDY if an API server or a proxy does
// not support WebSocket.
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

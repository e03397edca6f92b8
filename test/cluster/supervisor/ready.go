// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// readyInterval is the interval between two checks of conditions.
const readyInterval = 100 * time.Millisecond

// condition is a requirement for starting pods.
type condition struct {
	name  string
	check func(ctx context.Context) error
}

// waitReady waits until pods can be created, scheduled and started, and can reach the API server through its service.
func (n *controlNode) waitReady(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(n.control.AdminConfig())
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	if err := waitAll(ctx,
		condition{"the scheduler", healthy("https://127.0.0.1:10259/healthz")},
		condition{"the service account default of the namespace default", func(ctx context.Context) error {
			_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
			return err
		}},
	); err != nil {
		return err
	}
	return n.waitNodeReady(ctx, n.control.AdminConfig())
}

// waitNodeReady waits until a pod on the node can be started and reach services.
func (n *node) waitNodeReady(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	return waitAll(ctx,
		condition{"the rules of kube-proxy", healthy("http://127.0.0.1:10256/healthz")},
		condition{"the node to be Ready", func(ctx context.Context) error { return nodeReady(ctx, client, n.number.Name()) }},
	)
}

func waitAll(ctx context.Context, conditions ...condition) error {
	for _, c := range conditions {
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c condition) wait(ctx context.Context) error {
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	last := errors.New("not asked yet")
	for {
		err := c.check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // Otherwise the end of ctx interrupted the request.
			last = err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; the last answer was: %w", c.name, context.Cause(ctx), last)
		}
	}
}

// healthy returns a check of a component in this network namespace. No other program is in the namespace, so the check
// accepts a self-signed certificate.
func healthy(url string) func(context.Context) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, response.Status)
		}
		return nil
	}
}

// nodeReady ignores taints that the node registered with and that are not Kubernetes' own.
func nodeReady(ctx context.Context, client kubernetes.Interface, name string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, taint := range node.Spec.Taints {
		if taint.Effect == corev1.TaintEffectNoSchedule && strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			return fmt.Errorf("node %s has the taint %s", name, taint.Key)
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s is not Ready: %s", name, condition.Message)
		}
	}
	return fmt.Errorf("node %s has no condition Ready", name)
}

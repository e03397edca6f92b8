// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const namespace = "scale"

// size is the size of the run.
type size struct {
	nodes, watches int // watches is the number of each node
	// perPod is the number of volumes of a pod. sample is the number of Secrets of a node with which the run checks that
	// watches are current.
	perPod, sample int
	// idle and hold are the durations of measuring the CPU time before the watches and with them.
	idle, hold time.Duration
	// outage is the duration of the outage of the API server.
	outage time.Duration
	// window is the duration of measuring heartbeats after an outage and during a restart.
	window time.Duration
	// batches is the number of batches of updates of the shared Secret. sharedVolumes is the number of volumes of a node
	// that show the Secret afterwards.
	batches, sharedVolumes int
	// renew is the duration of counting renewals, with other numbers of nodes and watches.
	renew                    time.Duration
	renewNodes, renewWatches int
}

func full() size {
	return size{
		nodes: 50, watches: 100, perPod: 10, sample: 5, idle: 20 * time.Second, hold: time.Minute,
		outage: 30 * time.Second, window: 15 * time.Second, batches: 5, sharedVolumes: 100,
		renew: 30 * time.Second, renewNodes: 5, renewWatches: 20,
	}
}

func small() size {
	return size{
		nodes: 5, watches: 20, perPod: 10, sample: 5, idle: time.Second, hold: time.Second,
		outage: 3 * time.Second, window: 3 * time.Second, batches: 1, sharedVolumes: 10,
		renew: 25 * time.Second, renewNodes: 2, renewWatches: 10,
	}
}

// count returns the number of watches of all nodes.
func (s size) count() int { return s.nodes * s.watches }

func (s size) all() []int {
	nodes := make([]int, s.nodes)
	for i := range nodes {
		nodes[i] = i
	}
	return nodes
}

// eachNode calls f for each node, a few at a time.
func (s size) eachNode(f func(node int) error) error { return lab.Concurrently(s.nodes, 8, f) }

func nodeName(node int) string { return fmt.Sprintf("node-%d", node) }

// sharedSecret is the Secret of a pod on each node.
const sharedSecret = "shared"

func secretName(node, i int) string { return fmt.Sprintf("secret-%d-%d", node, i) }
func podName(node, pod int) string  { return fmt.Sprintf("pod-%d-%d", node, pod) }
func volumeName(i int) string       { return fmt.Sprintf("v%d", i) }

// secrets returns the Secrets that a node watches.
func (s size) secrets(node int) []string {
	names := []string{sharedSecret}
	for i := range s.watches - 1 {
		names = append(names, secretName(node, i))
	}
	return names
}

// samples returns the first Secrets of a node.
func (s size) samples(node int) []string { return s.secrets(node)[1 : 1+s.sample] }

// pods returns the pods of a node. Each volume of the driver shows one Secret, and the policy declares the same Secret
// as a volume, which kubelet's manager watches.
func (s size) pods(node int) (pods []*corev1.Pod) {
	names := s.secrets(node)
	for first := 0; first < len(names); first += s.perPod {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName(node, len(pods))},
			Spec: corev1.PodSpec{
				NodeName: nodeName(node), AutomountServiceAccountToken: new(false),
				Containers: []corev1.Container{{Name: "c", Image: "none"}},
			},
		}
		for i, name := range names[first:min(first+s.perPod, len(names))] {
			csi := &corev1.CSIVolumeSource{
				Driver: "fsuser.csi.io", ReadOnly: new(true), VolumeAttributes: attributes(name),
			}
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
				Name: volumeName(i), VolumeSource: corev1.VolumeSource{CSI: csi},
			})
		}
		pods = append(pods, pod)
	}
	return pods
}

func attributes(secret string) map[string]string {
	return map[string]string{"secretName": secret, "uid": "1000", "gid": "1000", "mode": "0400"}
}

// versionKey is the key of a Secret with the number of its last update.
const versionKey = "version"

// cluster is the control plane and the objects of the run.
type cluster struct {
	*controlplane.ControlPlane
	size  size
	dir   string
	admin kubernetes.Interface
	// audit is the path of the audit log.
	audit string
	// version is the number of the last update of the Secrets.
	version int
	// pods are the created pods, by node.
	pods [][]*corev1.Pod
	// drivers and kubelets are the configurations of the clients, by node.
	drivers, kubelets []*rest.Config
}

// startCluster starts a control plane and creates the objects and the credentials of all nodes.
func startCluster(ctx context.Context, s size, dir string) (_ *cluster, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cluster{
		size: s, dir: dir, audit: filepath.Join(dir, "audit.log"), pods: make([][]*corev1.Pod, s.nodes),
		drivers: make([]*rest.Config, s.nodes), kubelets: make([]*rest.Config, s.nodes),
	}
	policy := filepath.Join(dir, "audit.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, err
	}
	c.ControlPlane, err = controlplane.Start(ctx, controlplane.Options{
		Dir: filepath.Join(dir, "cp"),
		ExtraArgs: []string{
			"--profiling=true",
			"--audit-policy-file=" + policy, "--audit-log-path=" + c.audit, "--audit-log-maxsize=10000",
		},
	})
	if err != nil {
		return nil, err
	}
	config := c.AdminConfig()
	config.ContentType = runtime.ContentTypeProtobuf
	if c.admin, err = kubernetes.NewForConfig(config); err == nil {
		err = c.createObjects(ctx)
	}
	if err == nil {
		err = c.writeConfigs("https://" + c.APIServerAddress())
	}
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *cluster) createObjects(ctx context.Context) error {
	if err := nodeaccess.Install(ctx, c.ControlPlane, c.admin, namespace); err != nil {
		return err
	}
	leases := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: corev1.NamespaceNodeLease}}
	_, _ = c.admin.CoreV1().Namespaces().Create(ctx, leases, metav1.CreateOptions{}) // The API server creates it, too.
	if err := c.createSecret(ctx, sharedSecret); err != nil {
		return err
	}
	return c.size.eachNode(func(node int) error { return c.createNode(ctx, node) })
}

func (c *cluster) createNode(ctx context.Context, node int) (err error) {
	if err := nodeaccess.MakeNode(ctx, c.admin, nodeName(node)); err != nil {
		return err
	}
	for _, name := range c.size.secrets(node)[1:] {
		if err := c.createSecret(ctx, name); err != nil {
			return err
		}
	}
	for _, pod := range c.size.pods(node) {
		created, err := c.admin.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		c.pods[node] = append(c.pods[node], created)
	}
	if c.drivers[node], err = c.driverOn(ctx, node); err != nil {
		return err
	}
	c.kubelets[node], err = c.UserConfig("system:node:"+nodeName(node), "system:nodes")
	return err
}

// driverOn creates a pod of the driver on a node, and returns a configuration with a token that is bound to the pod.
func (c *cluster) driverOn(ctx context.Context, node int) (*rest.Config, error) {
	pod, err := c.admin.CoreV1().Pods(nodeaccess.System).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(node)},
		Spec: corev1.PodSpec{
			NodeName: nodeName(node), ServiceAccountName: nodeaccess.ServiceAccount,
			AutomountServiceAccountToken: new(false), Containers: []corev1.Container{{Name: "c", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	config := c.AdminConfig()
	config.BearerToken, err = nodeaccess.Token(ctx, c.admin, pod, 24*time.Hour)
	return config, err
}

// writeConfigs writes the files with the clients' configurations. The clients reach the API server at host.
func (c *cluster) writeConfigs(host string) error {
	for node := range c.size.nodes {
		for path, config := range map[string]*rest.Config{
			driverConfig(c.dir, node): c.drivers[node], kubeletConfig(c.dir, node): c.kubelets[node],
		} {
			config.Host = host
			if err := c.Kubeconfig(path, config); err != nil {
				return err
			}
		}
	}
	return nil
}

func driverConfig(dir string, node int) string {
	return filepath.Join(dir, fmt.Sprintf("driver-%d.kubeconfig", node))
}

func kubeletConfig(dir string, node int) string {
	return filepath.Join(dir, fmt.Sprintf("kubelet-%d.kubeconfig", node))
}

func (c *cluster) createSecret(ctx context.Context, name string) error {
	_, err := c.admin.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Data:       map[string][]byte{versionKey: []byte("0"), "padding": make([]byte, 1024)},
	}, metav1.CreateOptions{})
	return err
}

// updateSamples writes the next version into the sample of each node.
func (c *cluster) updateSamples(ctx context.Context) error {
	c.version++
	return c.size.eachNode(func(node int) error {
		for _, name := range c.size.samples(node) {
			if err := c.update(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// updateShared writes the next version into the shared Secret.
func (c *cluster) updateShared(ctx context.Context) error {
	c.version++
	return c.update(ctx, sharedSecret)
}

func (c *cluster) update(ctx context.Context, name string) error {
	patch := fmt.Appendf(nil, `{"stringData":{%q:%q}}`, versionKey, strconv.Itoa(c.version))
	_, err := c.admin.CoreV1().Secrets(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

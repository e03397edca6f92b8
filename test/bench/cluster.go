// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const namespace = metav1.NamespaceDefault

// cluster is a real API server with a client of its administrator.
type cluster struct {
	client  kubernetes.Interface
	secrets typedv1.SecretInterface
	// kubeconfig is the path of the driver's kubeconfig.
	kubeconfig string
}

// newCluster starts the control plane on its first call.
func (e *env) newCluster(ctx context.Context) (*cluster, error) {
	return e.cluster.get(func() (*cluster, error) {
		cp, err := controlplane.Start(ctx, controlplane.Options{})
		if err != nil {
			return nil, err
		}
		e.onClose(func() error { cp.Stop(); return nil })
		config := cp.AdminConfig()
		config.ContentType = runtime.ContentTypeProtobuf
		config.QPS = -1 // The client must not limit the measured programs.
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		c := &cluster{
			client: client, secrets: client.CoreV1().Secrets(namespace),
			kubeconfig: filepath.Join(e.dir, "kubeconfig"),
		}
		const user = "system:serviceaccount:fsuser-csi:fsuser-csi"
		if err := c.allow(ctx, user); err != nil {
			return nil, err
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}} // required by pods
		if _, err := client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		driver, err := cp.UserConfig(user)
		if err != nil {
			return nil, err
		}
		return c, cp.Kubeconfig(c.kubeconfig, driver)
	})
}

// allow gives the driver the right to read the Secrets and pods of the namespace.
func (c *cluster) allow(ctx context.Context, user string) error {
	const name = "fsuser-csi"
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets", "pods"}, Verbs: []string{"get", "list", "watch"}},
		},
	}
	if _, err := c.client.RbacV1().Roles(namespace).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
	_, err := c.client.RbacV1().RoleBindings(namespace).Create(ctx, binding, metav1.CreateOptions{})
	return err
}

// describing is the name of the volume of a pod that describes another volume.
const describing = "describing"

// described returns the attributes of a volume that the volume describing of its pod describes.
func described() map[string]string { return owned("volume", describing) }

// createDescribed creates a pod with a volume of a Secret, and with the driver's volume, which that volume describes.
func (c *cluster) createDescribed(ctx context.Context, name, secret string) (kubelet.Pod, error) {
	readOnly, noToken := true, false
	pod, err := c.client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &noToken,
			Containers:                   []corev1.Container{{Name: "c", Image: "none"}},
			Volumes: []corev1.Volume{
				{Name: describing, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}}},
				{Name: volumeName, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
					Driver: "fsuser.csi.io", ReadOnly: &readOnly, VolumeAttributes: described(),
				}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return kubelet.Pod{}, err
	}
	return kubelet.Pod{Namespace: namespace, Name: name, UID: string(pod.UID)}, nil
}

// object is the origin of a volume's content: a Secret of the API server, or a manifest.
type object interface {
	// objectName returns the name of the object in a volume.
	objectName() string
	// update makes a new version of the object.
	update(ctx context.Context) error
	// current returns the number of the current version.
	current() int
}

// secret is a Secret of the cluster.
type secret struct {
	*cluster
	name    string
	version int
	// padding is the content of another key that does not change.
	padding []byte
}

func (c *cluster) create(ctx context.Context, name string) (*secret, error) {
	return c.createPadded(ctx, name, 0)
}

// createPadded creates a Secret with a number of bytes in another key.
func (c *cluster) createPadded(ctx context.Context, name string, padding int) (*secret, error) {
	s := &secret{cluster: c, name: name, padding: bytes.Repeat([]byte("x"), padding)}
	_, err := c.secrets.Create(ctx, s.object(0), metav1.CreateOptions{})
	return s, err
}

// createMany creates n Secrets.
func (c *cluster) createMany(ctx context.Context, prefix string, n int) ([]*secret, error) {
	all := make([]*secret, n)
	return all, lab.Concurrently(n, 8, func(i int) (err error) {
		all[i], err = c.create(ctx, fmt.Sprintf("%s-%d", prefix, i))
		return err
	})
}

func (s *secret) object(version int) *corev1.Secret {
	data := content(version)
	if len(s.padding) > 0 {
		data["padding"] = s.padding
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: s.name}, Data: data}
}

func (s *secret) objectName() string { return s.name }

func (s *secret) current() int { return s.version }

func (s *secret) get(ctx context.Context) error {
	_, err := s.secrets.Get(ctx, s.name, metav1.GetOptions{})
	return err
}

func (s *secret) update(ctx context.Context) error {
	s.version++
	_, err := s.secrets.Update(ctx, s.object(s.version), metav1.UpdateOptions{})
	return err
}

// seen is a version and the time at which it was seen.
type seen struct {
	version int
	at      time.Time
}

// watch reports each version for which an event comes.
func (s *secret) watch(e *env) (<-chan seen, error) {
	ctx, cancel := context.WithCancel(context.Background())
	w, err := s.secrets.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String(),
	})
	if err != nil {
		cancel()
		return nil, err
	}
	events := make(chan seen, 100)
	e.onClose(func() error { cancel(); w.Stop(); return nil })
	go func() {
		for event := range w.ResultChan() {
			at := time.Now()
			object, ok := event.Object.(*corev1.Secret)
			if !ok {
				continue
			}
			var version int
			if _, err := fmt.Sscanf(string(object.Data[mainKey]), "version %d\n", &version); err != nil {
				continue
			}
			select {
			case events <- seen{version, at}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

var requestCount = regexp.MustCompile(`^apiserver_request_total\{(.*)\} (\S+)$`)

// reads returns the number of requests for Secrets, ConfigMaps or pods that the API server has answered. A watch counts
// at its end.
func (c *cluster) reads(ctx context.Context) (int, error) {
	metrics, err := c.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for line := range strings.Lines(string(metrics)) {
		m := requestCount.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || !hasLabel(m[1], "verb", "GET", "LIST", "WATCH") ||
			!hasLabel(m[1], "resource", "secrets", "configmaps", "pods") {
			continue
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %q: %w", line, err)
		}
		total += int(n)
	}
	return total, nil
}

func hasLabel(labels, key string, values ...string) bool {
	for _, value := range values {
		if strings.Contains(","+labels, fmt.Sprintf(`,%s="%s"`, key, value)) {
			return true
		}
	}
	return false
}

// readsWhenQuiet returns reads after the number has stopped changing, because the ends of watches count a little later.
func (c *cluster) readsWhenQuiet(ctx context.Context) (int, error) {
	last, since := -1, time.Now()
	for {
		n, err := c.reads(ctx)
		if err != nil {
			return 0, err
		}
		if n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > 500*time.Millisecond {
			return n, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

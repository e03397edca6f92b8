// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	secretmanager "k8s.io/kubernetes/pkg/kubelet/secret"
	kubeletvolume "k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/emptydir"
	secretvolume "k8s.io/kubernetes/pkg/volume/secret"
	"k8s.io/mount-utils"
	"k8s.io/utils/ptr"
)

// kubeletHost takes the place of kubelet for its volume plugins: it has directories, the mount program, and kubelet's
// manager of Secrets, which watches the Secrets of the node's pods.
type kubeletHost struct {
	// The interface is nil, because the plugins of Secrets and empty directories call no other method.
	kubeletvolume.VolumeHost
	root    string
	plugins kubeletvolume.VolumePluginMgr
	secrets secretmanager.Manager
	mounter mount.Interface
}

func (e *env) newKubeletHost(c *cluster) (*kubeletHost, error) {
	root, err := e.newDir("kubelet")
	if err != nil {
		return nil, err
	}
	h := &kubeletHost{root: root, mounter: mount.New("")}
	h.secrets = secretmanager.NewWatchingSecretManager(c.client, time.Minute)
	plugins := append(secretvolume.ProbeVolumePlugins(), emptydir.ProbeVolumePlugins()...)
	return h, h.plugins.InitPlugins(plugins, nil, h)
}

func (h *kubeletHost) GetPluginDir(plugin string) string {
	return filepath.Join(h.root, "plugins", plugin)
}

func (h *kubeletHost) GetPodVolumeDir(pod types.UID, plugin, name string) string {
	return filepath.Join(h.root, "pods", string(pod), "volumes", plugin, name)
}

func (h *kubeletHost) GetPodPluginDir(pod types.UID, plugin string) string {
	return filepath.Join(h.root, "pods", string(pod), "plugins", plugin)
}

func (h *kubeletHost) GetMounter() mount.Interface { return h.mounter }

func (h *kubeletHost) GetNodeAllocatable() (corev1.ResourceList, error) {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}, nil
}

func (h *kubeletHost) GetSecretFunc() func(namespace, name string) (*corev1.Secret, error) {
	return h.secrets.GetSecret
}

func (h *kubeletHost) NewWrapperMounter(
	name string, spec kubeletvolume.Spec, pod *corev1.Pod,
) (kubeletvolume.Mounter, error) {
	spec.Volume.Name = "wrapped_" + name
	return h.newMounter(&spec, pod)
}

func (h *kubeletHost) NewWrapperUnmounter(
	name string, spec kubeletvolume.Spec, pod types.UID,
) (kubeletvolume.Unmounter, error) {
	spec.Volume.Name = "wrapped_" + name
	return h.newUnmounter(&spec, pod)
}

func (h *kubeletHost) newMounter(spec *kubeletvolume.Spec, pod *corev1.Pod) (kubeletvolume.Mounter, error) {
	plugin, err := h.plugins.FindPluginBySpec(spec)
	if err != nil {
		return nil, err
	}
	return plugin.NewMounter(spec, pod)
}

func (h *kubeletHost) newUnmounter(spec *kubeletvolume.Spec, pod types.UID) (kubeletvolume.Unmounter, error) {
	plugin, err := h.plugins.FindPluginBySpec(spec)
	if err != nil {
		return nil, err
	}
	return plugin.NewUnmounter(spec.Name(), pod)
}

// setUp sets up the volume of a pod, as kubelet does at first and at each synchronization of the pod.
func (h *kubeletHost) setUp(pod *corev1.Pod) error {
	mounter, err := h.newMounter(kubeletvolume.NewSpecFromVolume(&pod.Spec.Volumes[0]), pod)
	if err != nil {
		return err
	}
	return mounter.SetUp(kubeletvolume.MounterArgs{})
}

func (h *kubeletHost) tearDown(pod *corev1.Pod) error {
	unmounter, err := h.newUnmounter(kubeletvolume.NewSpecFromVolume(&pod.Spec.Volumes[0]), pod.UID)
	if err != nil {
		return err
	}
	return unmounter.TearDown()
}

// podOf returns a pod with a volume of a Secret.
func (h *kubeletHost) podOf(name string, s *secret) *corev1.Pod {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: volumeName, VolumeSource: corev1.VolumeSource{
		Secret: &corev1.SecretVolumeSource{SecretName: s.name, DefaultMode: ptr.To[int32](fileMode)},
	}}}}}
	pod.Namespace, pod.Name, pod.UID = namespace, name, types.UID(name)
	return pod
}

// await waits until kubelet's manager has the current version of a Secret.
func (h *kubeletHost) await(ctx context.Context, s *secret) error {
	for {
		got, err := h.secrets.GetSecret(namespace, s.name)
		if err == nil && isVersion(got.Data[mainKey], s.version) {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for version %d of %s: %w (%w)", s.version, s.name, context.Cause(ctx), err)
		}
	}
}

// runInKubelet measures kubelet's volume of a Secret that kubelet already watches.
func (y *yardsticks) runInKubelet(ctx context.Context, e *env) (step, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, err
	}
	h, err := e.newKubeletHost(c)
	if err != nil {
		return nil, err
	}
	s, err := c.create(ctx, e.name("kubelet"))
	if err != nil {
		return nil, err
	}
	kept := h.podOf(e.name("kubelet"), s)
	h.secrets.RegisterPod(kept)
	e.onClose(func() error { h.secrets.UnregisterPod(kept); return nil })
	if err := h.await(ctx, s); err != nil {
		return nil, err
	}
	if err := h.setUp(kept); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if err := y.setUpAndTearDown(h, h.podOf(e.name("kubelet"), s)); err != nil {
			return err
		}
		return y.setUpAgain(ctx, h, kept, s)
	}, nil
}

func (y *yardsticks) setUpAndTearDown(h *kubeletHost, pod *corev1.Pod) error {
	start := time.Now()
	if err := h.setUp(pod); err != nil {
		return err
	}
	y.kubeletSetUp.time(time.Since(start))
	if err := h.tearDown(pod); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(h.root, "pods", string(pod.UID)))
}

// setUpAgain measures the refresh of a volume, without the wait of a minute or more for the pod's synchronization.
func (y *yardsticks) setUpAgain(ctx context.Context, h *kubeletHost, pod *corev1.Pod, s *secret) error {
	start := time.Now()
	if err := h.setUp(pod); err != nil {
		return err
	}
	y.kubeletUnchanged.time(time.Since(start))
	if err := s.update(ctx); err != nil {
		return err
	}
	if err := h.await(ctx, s); err != nil {
		return err
	}
	start = time.Now()
	if err := h.setUp(pod); err != nil {
		return err
	}
	y.kubeletChanged.time(time.Since(start))
	dir := h.GetPodVolumeDir(pod.UID, "kubernetes.io~secret", volumeName)
	data, err := os.ReadFile(filepath.Join(dir, mainKey))
	if err == nil && !isVersion(data, s.version) {
		err = fmt.Errorf("%s does not have version %d", dir, s.version)
	}
	return err
}

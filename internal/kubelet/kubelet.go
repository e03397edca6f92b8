// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a fake kubelet for CSI node drivers: it makes kubelet's directories, handles the driver's
// registration and sends kubelet's requests. The demo, the tests and the benchmarks use it; the driver does not.
//
// The fake starts no containers. Type Kubelet makes single calls and keeps no state. VolumeManager has kubelet's
// rules for errors, retries and restarts.
package kubelet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Pod is a pod that has a volume.
type Pod struct {
	Namespace, Name, UID string
}

// Volume is an inline CSI volume as a pod declares it.
type Volume struct {
	Name       string
	Attributes map[string]string
	// Writable omits csi.readOnly.
	Writable bool
	// FSGroup is the fsGroup of the pod; empty if it has none.
	FSGroup string
	// Secrets is the data of nodePublishSecretRef.
	Secrets map[string]string
}

// Kubelet calls a registered driver.
type Kubelet struct {
	root string
	conn *grpc.ClientConn
	csi.NodeClient
}

// MakeRoot makes the directories in kubelet's root directory that a driver uses.
func MakeRoot(root string) error {
	for _, dir := range []string{"pods", "plugins", "plugins/fsuser.csi.io", "plugins_registry"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o750); err != nil {
			return err
		}
	}
	return nil
}

// Register waits for a driver's socket in plugins_registry, gets the driver's endpoint as kubelet does, and returns a
// connected Kubelet.
func Register(ctx context.Context, root string) (*Kubelet, error) {
	socket, err := awaitSocket(ctx, filepath.Join(root, "plugins_registry"))
	if err != nil {
		return nil, err
	}
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	registration := pluginregistration.NewRegistrationClient(conn)
	info, err := registration.GetInfo(ctx, &pluginregistration.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the driver for its endpoint: %w", err)
	}
	k, err := Connect(root, info.GetEndpoint())
	if err != nil {
		return nil, err
	}
	if _, err := k.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil {
		return nil, errors.Join(fmt.Errorf("ask the driver for its node: %w", err), k.Close())
	}
	if _, err := registration.NotifyRegistrationStatus(ctx,
		&pluginregistration.RegistrationStatus{PluginRegistered: true}); err != nil {
		return nil, errors.Join(fmt.Errorf("tell the driver that it is registered: %w", err), k.Close())
	}
	return k, nil
}

// Connect returns a Kubelet for a driver with a known CSI socket.
func Connect(root, endpoint string) (*Kubelet, error) {
	conn, err := dial(endpoint)
	if err != nil {
		return nil, err
	}
	return &Kubelet{root: root, conn: conn, NodeClient: csi.NewNodeClient(conn)}, nil
}

// Close closes the connection.
func (k *Kubelet) Close() error { return k.conn.Close() }

// Target returns the target path of a volume of a pod.
func (k *Kubelet) Target(pod Pod, volume string) string {
	return filepath.Join(k.root, "pods", pod.UID, "volumes", "kubernetes.io~csi", volume, "mount")
}

// Request returns kubelet's request to publish a volume.
func (k *Kubelet) Request(pod Pod, v Volume) *csi.NodePublishVolumeRequest {
	attributes := map[string]string{}
	for key, value := range v.Attributes {
		attributes[key] = value
	}
	attributes["csi.storage.k8s.io/pod.name"] = pod.Name
	attributes["csi.storage.k8s.io/pod.namespace"] = pod.Namespace
	attributes["csi.storage.k8s.io/pod.uid"] = pod.UID
	attributes["csi.storage.k8s.io/serviceAccount.name"] = "default"
	attributes["csi.storage.k8s.io/ephemeral"] = "true"
	return &csi.NodePublishVolumeRequest{
		VolumeId:   VolumeID(pod, v.Name),
		TargetPath: k.Target(pod, v.Name),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: v.FSGroup}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		Readonly:      !v.Writable,
		Secrets:       v.Secrets,
		VolumeContext: attributes,
	}
}

// VolumeID returns the id that kubelet generates for an inline volume.
func VolumeID(pod Pod, volume string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(pod.UID+volume)))
}

// Publish publishes a volume and returns its target path.
func (k *Kubelet) Publish(ctx context.Context, pod Pod, v Volume) (target string, err error) {
	req := k.Request(pod, v)
	if err := os.MkdirAll(filepath.Dir(req.GetTargetPath()), 0o750); err != nil {
		return "", err
	}
	_, err = k.NodePublishVolume(ctx, req)
	return req.GetTargetPath(), err
}

// Unpublish unpublishes a volume and removes its directory, as kubelet does.
func (k *Kubelet) Unpublish(ctx context.Context, pod Pod, volume string) error {
	target := k.Target(pod, volume)
	if _, err := k.NodeUnpublishVolume(ctx,
		&csi.NodeUnpublishVolumeRequest{VolumeId: VolumeID(pod, volume), TargetPath: target}); err != nil {
		return err
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the driver left %s behind", target)
	}
	return os.RemoveAll(filepath.Dir(target))
}

// RemovePod removes the remaining directories of a pod. The directories must be empty, so RemovePod never deletes
// files in a mount.
func (k *Kubelet) RemovePod(pod Pod) error {
	dir := filepath.Join(k.root, "pods", pod.UID)
	for _, d := range []string{"volumes/kubernetes.io~csi", "volumes", ""} {
		if err := os.Remove(filepath.Join(dir, d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func awaitSocket(ctx context.Context, dir string) (string, error) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if e.Type() == fs.ModeSocket && e.Name()[0] != '.' {
				return filepath.Join(dir, e.Name()), nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return "", fmt.Errorf("waited for a driver's socket in %s: %w", dir, context.Cause(ctx))
		}
	}
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// bindServer is the smallest possible CSI node driver: it binds one directory to each target. It writes nothing.
type bindServer struct {
	noCapabilities
	dir string
}

func (s bindServer) NodePublishVolume(
	_ context.Context, req *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	if err := os.Mkdir(req.GetTargetPath(), 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := unix.Mount(s.dir, req.GetTargetPath(), "", unix.MS_BIND, ""); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (bindServer) NodeUnpublishVolume(
	_ context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unix.Unmount(req.GetTargetPath(), 0); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := os.Remove(req.GetTargetPath()); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (y *yardsticks) runBind(ctx context.Context, e *env) (step, error) {
	n, err := e.peerNode(ctx, bindOnly)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return n.comeAndGo(ctx, "", y.bind, y.unbind) }, nil
}

func (y *yardsticks) runBindAsKubelet(ctx context.Context, e *env) (step, error) {
	n, err := e.peerNode(ctx, bindOnly)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return n.asKubelet(ctx, "", y.bindKubelet) }, nil
}

// asKubelet publishes as kubelet does: it gets the driver's capabilities twice and then publishes, each over a new
// connection.
func (n *node) asKubelet(ctx context.Context, object string, took *row) error {
	v, err := n.prepare(object)
	if err != nil {
		return err
	}
	capabilities := func(k *kubelet.Kubelet) error {
		_, err := k.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
		return err
	}
	publish := func(k *kubelet.Kubelet) error {
		_, err := k.NodePublishVolume(ctx, v.request)
		return err
	}
	start := time.Now()
	for _, call := range []func(*kubelet.Kubelet) error{capabilities, capabilities, publish} {
		k, err := kubelet.Connect(n.root, n.endpoint)
		if err != nil {
			return err
		}
		if err := errors.Join(call(k), k.Close()); err != nil {
			return fmt.Errorf("as kubelet: %w", err)
		}
	}
	took.time(time.Since(start))
	return n.unpublish(ctx, v)
}

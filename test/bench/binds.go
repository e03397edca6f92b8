// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// bindServer is the least that a CSI node driver can do: it binds one directory to each target. It writes nothing.
type bindServer struct {
	csi.UnimplementedNodeServer
	dir string
}

func (bindServer) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (s bindServer) NodePublishVolume(_ context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := os.Mkdir(req.GetTargetPath(), 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := unix.Mount(s.dir, req.GetTargetPath(), "", unix.MS_BIND, ""); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (bindServer) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unix.Unmount(req.GetTargetPath(), 0); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := os.Remove(req.GetTargetPath()); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// serveBinds is the role of a process of this program.
func serveBinds(socket, dir string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	csi.RegisterNodeServer(server, bindServer{dir: dir})
	return server.Serve(listener)
}

// bindNode starts a bindServer in a process of its own, the first time.
func (e *env) bindNode(ctx context.Context) (*node, error) {
	return e.binds.get(func() (*node, error) {
		root, err := e.newDir("binds")
		if err != nil {
			return nil, err
		}
		if err := kubelet.MakeRoot(root); err != nil {
			return nil, err
		}
		n := &node{env: e, root: root, endpoint: filepath.Join(root, "plugins", "csi.sock")}
		cmd := self(roleBind, n.endpoint, filepath.Join(root, "plugins"))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		e.onClose(func() error {
			_ = cmd.Process.Kill() // it has nothing to clean up
			_ = cmd.Wait()
			return nil
		})
		if n.Kubelet, err = kubelet.Connect(root, n.endpoint); err != nil {
			return nil, err
		}
		e.onClose(n.Kubelet.Close)
		_, err = n.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{}, grpc.WaitForReady(true))
		return n, err
	})
}

func (y *yardsticks) runBind(ctx context.Context, e *env) (step, error) {
	n, err := e.bindNode(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return n.comeAndGo(ctx, "", y.bind, y.unbind) }, nil
}

func (y *yardsticks) runBindAsKubelet(ctx context.Context, e *env) (step, error) {
	n, err := e.bindNode(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return n.asKubelet(ctx, "", y.bindKubelet) }, nil
}

// asKubelet publishes as kubelet does: two questions for the driver's capabilities and then the publish, each over a new connection.
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

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	provider "sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// peer is a gRPC server in a process of its own, with which the driver is compared.
type peer string

const (
	bindOnly             peer = "bind"
	spiffe               peer = "spiffe-csi"
	secretsStore         peer = "secrets-store"
	secretsStoreProvider peer = "provider" // the secrets store's other server
)

// servePeer is the role of a process of this program that serves a peer on a socket. The peer binds the directory to
// its targets, or finds the socket of its provider in the directory.
func servePeer(p peer, socket, dir string) error {
	server := grpc.NewServer()
	switch p {
	case bindOnly:
		csi.RegisterNodeServer(server, bindServer{dir: dir})
	case spiffe:
		csi.RegisterNodeServer(server, spiffeServer{dir: dir})
	case secretsStore:
		s, err := newSecretsStoreServer(providerSocket(dir))
		if err != nil {
			return err
		}
		csi.RegisterNodeServer(server, s)
	case secretsStoreProvider:
		provider.RegisterCSIDriverProviderServer(server, &providerServer{})
	default:
		return fmt.Errorf("there is no peer %q", p)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// peerNode starts a peer that is a CSI driver on its first call, and connects a kubelet to the peer.
func (e *env) peerNode(ctx context.Context, p peer) (*node, error) {
	if n := e.peers[p]; n != nil {
		return n, nil
	}
	root, err := e.newDir("peer")
	if err != nil {
		return nil, err
	}
	if err := kubelet.MakeRoot(root); err != nil {
		return nil, err
	}
	dir := filepath.Join(root, "plugins")
	n := &node{env: e, root: root, endpoint: filepath.Join(dir, "csi.sock")}
	if p == secretsStore {
		if err := e.startPeer(secretsStoreProvider, providerSocket(dir), dir); err != nil {
			return nil, err
		}
	}
	if err := e.startPeer(p, n.endpoint, dir); err != nil {
		return nil, err
	}
	if n.Kubelet, err = kubelet.Connect(root, n.endpoint); err != nil {
		return nil, err
	}
	e.onClose(n.Kubelet.Close)
	if _, err := n.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("start %s: %w", p, err)
	}
	e.peers[p] = n
	return n, nil
}

// startPeer starts a peer's process. Its log goes to a file, like that of a container.
func (e *env) startPeer(p peer, socket, dir string) error {
	log, err := os.Create(filepath.Join(e.dir, string(p)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := lab.Self(rolePeer, string(p), socket, dir)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return err
	}
	e.onClose(func() error {
		_ = cmd.Process.Signal(unix.SIGKILL) // The process has nothing to clean up.
		_ = cmd.Wait()
		return nil
	})
	return nil
}

// noCapabilities is a driver without an optional capability.
type noCapabilities struct{ csi.UnimplementedNodeServer }

func (noCapabilities) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/fileutil"
	provider "sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
)

// secretsStoreServer makes the steps of secrets-store-csi-driver 1.6.0 for a volume with rotation: it checks the
// target, mounts a tmpfs with the mount program, asks the provider for the files, and writes them. The protocol of the
// provider and the writer of the files are the project's own packages. The code between them is new, and it omits one
// step: the real driver also creates or updates an object in the API server for each volume.
type secretsStoreServer struct {
	noCapabilities
	mounter  mount.Interface
	provider provider.CSIDriverProviderClient
}

func providerSocket(dir string) string { return filepath.Join(dir, "provider.sock") }

func newSecretsStoreServer(socket string) (*secretsStoreServer, error) {
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &secretsStoreServer{mounter: mount.New(""), provider: provider.NewCSIDriverProviderClient(connection)}, nil
}

func (s *secretsStoreServer) NodePublishVolume(
	ctx context.Context, req *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	if req.GetVolumeCapability() == nil || req.GetVolumeId() == "" || len(req.GetVolumeContext()) == 0 ||
		!req.GetReadonly() {
		return nil, status.Error(codes.InvalidArgument, "not a read-only volume with attributes")
	}
	target := req.GetTargetPath()
	_, _ = os.Stat(target) // This is the time of the last rotation. The benchmark's volumes are always due.
	mounted, err := s.makeTarget(target)
	if err == nil && !mounted {
		err = s.mounter.Mount("tmpfs", target, "tmpfs", nil)
	}
	if err == nil {
		err = s.writeFiles(ctx, req)
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	slog.Info("node publish volume complete", "target", target)
	return &csi.NodePublishVolumeResponse{}, nil
}

// makeTarget creates the target, and reports whether it is a readable mount.
func (s *secretsStoreServer) makeTarget(target string) (mounted bool, err error) {
	notMounted, err := s.mounter.IsLikelyNotMountPoint(target)
	if errors.Is(err, os.ErrNotExist) {
		return false, os.MkdirAll(target, 0o750)
	}
	if err != nil || notMounted {
		return false, err
	}
	_, err = os.ReadDir(target)
	return true, err
}

func (s *secretsStoreServer) writeFiles(ctx context.Context, req *csi.NodePublishVolumeRequest) error {
	request := provider.MountRequest{TargetPath: req.GetTargetPath()}
	for _, part := range []struct {
		from any
		to   *string
	}{
		{req.GetVolumeContext(), &request.Attributes},
		{req.GetSecrets(), &request.Secrets},
		{fileMode, &request.Permission},
	} {
		text, err := json.Marshal(part.from)
		if err != nil {
			return err
		}
		*part.to = string(text)
	}
	got, err := s.provider.Mount(ctx, &request, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	return fileutil.WritePayloads(req.GetTargetPath(), got.GetFiles())
}

func (s *secretsStoreServer) NodeUnpublishVolume(
	_ context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	files, err := filepath.Glob(filepath.Join(req.GetTargetPath(), "*"))
	for _, file := range files {
		err = errors.Join(err, os.RemoveAll(file))
	}
	if err := errors.Join(err, mount.CleanupMountPoint(req.GetTargetPath(), s.mounter, false)); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// providerServer is a provider that answers at once, each time with a new version.
type providerServer struct {
	version atomic.Int64
}

func (*providerServer) Version(context.Context, *provider.VersionRequest) (*provider.VersionResponse, error) {
	return &provider.VersionResponse{Version: "v1alpha1"}, nil
}

func (p *providerServer) Mount(context.Context, *provider.MountRequest) (*provider.MountResponse, error) {
	version := int(p.version.Add(1))
	object := &provider.ObjectVersion{Id: "secret", Version: strconv.Itoa(version)}
	response := &provider.MountResponse{ObjectVersion: []*provider.ObjectVersion{object}}
	for key, data := range content(version) {
		response.Files = append(response.Files, &provider.File{Path: key, Mode: fileMode, Contents: data})
	}
	return response, nil
}

func (y *yardsticks) runSecretsStore(ctx context.Context, e *env) (step, error) {
	n, err := e.peerNode(ctx, secretsStore)
	if err != nil {
		return nil, err
	}
	kept, err := n.publish(ctx, "")
	if err != nil {
		return nil, err
	}
	var unmeasured row
	return func(ctx context.Context) error {
		if err := n.comeAndGo(ctx, "", y.storePublish, &unmeasured); err != nil {
			return err
		}
		before, err := os.ReadFile(kept.file())
		if err != nil {
			return err
		}
		start := time.Now()
		if _, err := n.NodePublishVolume(ctx, kept.request); err != nil {
			return err
		}
		y.storeChanged.time(time.Since(start))
		after, err := os.ReadFile(kept.file())
		if err == nil && bytes.Equal(before, after) {
			err = fmt.Errorf("%s has the old content", kept.file())
		}
		return err
	}, nil
}

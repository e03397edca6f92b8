// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// spiffeServer makes the steps of spiffe-csi 0.2.12 for a volume: it checks the request, creates the target, searches
// the mount table for the target, binds its directory, and logs a line. The code is new. The mount is read-write, as in
// spiffe-csi: SELinux can then label the files, and kubelet mounts the volume read-only into the containers.
type spiffeServer struct {
	noCapabilities
	dir string
}

func (s spiffeServer) NodePublishVolume(
	_ context.Context, req *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	volume, mode := req.GetVolumeCapability().GetMount(), req.GetVolumeCapability().GetAccessMode()
	if req.GetVolumeId() == "" || req.GetTargetPath() == "" || volume == nil || volume.GetFsType() != "" ||
		len(volume.GetMountFlags()) > 0 || mode == nil ||
		mode.GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY ||
		!req.GetReadonly() || req.GetVolumeContext()["csi.storage.k8s.io/ephemeral"] != "true" {
		return nil, status.Error(codes.InvalidArgument, "not a read-only ephemeral volume")
	}
	if err := os.Mkdir(req.GetTargetPath(), 0o777); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, status.Error(codes.Internal, err.Error())
	}
	mounted, err := inMountTable(req.GetTargetPath())
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if !mounted {
		if err := unix.Mount(s.dir, req.GetTargetPath(), "none", unix.MS_BIND, ""); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	slog.Info("Volume published", "volume", req.GetVolumeId(), "target", req.GetTargetPath())
	return &csi.NodePublishVolumeResponse{}, nil
}

func (spiffeServer) NodeUnpublishVolume(
	_ context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	mounted, err := inMountTable(req.GetTargetPath())
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if mounted {
		if err := unix.Unmount(req.GetTargetPath(), 0); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	if err := os.Remove(req.GetTargetPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, status.Error(codes.Internal, err.Error())
	}
	slog.Info("Volume unpublished", "volume", req.GetVolumeId(), "target", req.GetTargetPath())
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// inMountTable reports whether a path is a mount point. The path must have no character that the table escapes.
func inMountTable(path string) (bool, error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer table.Close()
	const mountPoint = 4
	for lines := bufio.NewScanner(table); ; {
		if !lines.Scan() {
			return false, lines.Err()
		}
		if fields := strings.Fields(lines.Text()); len(fields) > mountPoint && fields[mountPoint] == path {
			return true, nil
		}
	}
}

func (y *yardsticks) runSpiffe(ctx context.Context, e *env) (step, error) {
	n, err := e.peerNode(ctx, spiffe)
	if err != nil {
		return nil, err
	}
	var unmeasured row
	return func(ctx context.Context) error { return n.comeAndGo(ctx, "", y.spiffePublish, &unmeasured) }, nil
}

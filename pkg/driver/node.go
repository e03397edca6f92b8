// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// node is the CSI Node service.
type node struct {
	csi.UnimplementedNodeServer
	id      string
	binding Binding
	volumes Volumes
}

func (n node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	// The answer has no topology, which would become node labels, and no limit: the scheduler does not count inline
	// volumes.
	return &csi.NodeGetInfoResponse{NodeId: n.id}, nil
}

func (n node) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	var r csi.NodeGetCapabilitiesResponse
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		// With this capability, kubelet sends the pod's fsGroup instead of applying it. Applying it would widen the modes.
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	} {
		r.Capabilities = append(r.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return &r, nil
}

func (n node) NodePublishVolume(
	ctx context.Context, req *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	r, err := n.binding.publishRequest(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := n.volumes.Publish(ctx, r); err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n node) NodeUnpublishVolume(
	ctx context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	target, err := n.binding.unpublishRequest(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := n.volumes.Unpublish(ctx, req.GetVolumeId(), target); err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (n node) NodeGetVolumeStats(
	ctx context.Context, req *csi.NodeGetVolumeStatsRequest,
) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" || req.GetVolumePath() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id and volume_path must be set")
	}
	if !validVolumeID(req.GetVolumeId()) {
		return nil, status.Error(codes.InvalidArgument, badVolumeID)
	}
	u, err := n.volumes.Usage(ctx, req.GetVolumeId(), n.binding.resolve(req.GetVolumePath()))
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(u.BytesTotal), Used: int64(u.BytesUsed), Available: int64(u.BytesFree)},
		{Unit: csi.VolumeUsage_INODES, Total: int64(u.InodesTotal),
			Used: int64(u.InodesUsed), Available: int64(u.InodesFree)},
	}}, nil
}

// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// statuses are the codes of errors. The first that fits counts.
//
// To kubelet, Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted mean that the call may have left
// something, so that kubelet calls NodeUnpublishVolume; all other codes mean that it has not (csi_client.go,
// isFinalError). Kubelet retries after any of them. So a failure that could not be undone comes first.
func statuses() []struct {
	is   error
	code codes.Code
} {
	return []struct {
		is   error
		code codes.Code
	}{
		{volume.ErrLeftover, codes.Unavailable},
		{volume.ErrLocked, codes.Aborted},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{volume.ErrConflict, codes.AlreadyExists},
		{volume.ErrUnknown, codes.NotFound},
		{volume.ErrInvalid, codes.InvalidArgument},
		{volume.ErrPrecondition, codes.FailedPrecondition},
		{volume.ErrExhausted, codes.ResourceExhausted},
		// Before the reasons of package source: an object is also unavailable if there is no descriptor for the connection.
		{unix.ENOSPC, codes.ResourceExhausted},
		{unix.ENOMEM, codes.ResourceExhausted},
		{unix.EDQUOT, codes.ResourceExhausted},
		{unix.EMFILE, codes.ResourceExhausted},
		{unix.ENFILE, codes.ResourceExhausted},
		{source.ErrNotFound, codes.NotFound},
		{source.ErrForbidden, codes.PermissionDenied},
		{source.ErrUnavailable, codes.Unavailable},
	}
}

// toStatus makes an error of package volume a gRPC status. Its text goes into an Event of the pod as it is.
func toStatus(err error) error {
	if errors.Is(err, unix.EMFILE) {
		err = fmt.Errorf("%w (--max-open-files)", err)
	}
	for _, s := range statuses() {
		if errors.Is(err, s.is) {
			return status.Error(s.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

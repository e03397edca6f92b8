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

// statuses returns the codes of errors. The first matching entry counts.
//
// For kubelet, Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted mean that the call may have left
// something, so kubelet calls NodeUnpublishVolume. All other codes mean that nothing is left (csi_client.go,
// isFinalError). Kubelet retries after any code. Therefore a failure that could not be undone is the first entry.
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
		// These come before the reasons of package source, because an object is unavailable, too, if there is no descriptor
		// for the connection.
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

// toStatus turns an error of package volume into a gRPC status. An Event of the pod shows its text unchanged.
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

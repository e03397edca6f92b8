// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// intercept measures and logs each call, and keeps a panic in one from taking down the rest. It never logs a request: there are
// secrets in it.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	method := path.Base(info.FullMethod)
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(panicError(p), "A call panicked", "method", method, "stack", string(debug.Stack()))
			// Not Internal: what is left of the call is not known, and after a final code kubelet would not call NodeUnpublishVolume.
			resp, err = nil, status.Errorf(codes.Unavailable, "%s: the driver has a bug; its log has the stack", method)
		}
		took := time.Since(start)
		d.rpcs.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
		if err != nil {
			klog.ErrorS(err, "Call failed", "method", method, "volume", volumeID(req), "took", took)
		} else {
			klog.V(4).InfoS("Call", "method", method, "volume", volumeID(req), "took", took)
		}
	}()
	return handler(ctx, req)
}

// panicError tells what the runtime complains of. Any other value could hold anything, and only its type is told.
func panicError(p any) error {
	if err, ok := p.(runtime.Error); ok {
		return err
	}
	return fmt.Errorf("panic with a %T", p)
}

// volumeID is the volume that a request is about, if it has the form of one: a log is no place for anything else.
func volumeID(req any) string {
	if r, ok := req.(interface{ GetVolumeId() string }); ok && validVolumeID(r.GetVolumeId()) {
		return r.GetVolumeId()
	}
	return ""
}

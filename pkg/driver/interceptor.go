// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// intercept measures and logs each call, and keeps a panic in one call from ending the driver. It never logs a request,
// which holds secrets.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	method := path.Base(info.FullMethod)
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(panicError(p), "A call panicked", "method", method, "stack", string(debug.Stack()))
			// Not Internal: the call may have left something, and after a final code kubelet would not call NodeUnpublishVolume.
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

// readable registers services so that requests that can't be read are measured and logged like all others: gRPC refuses them
// before it calls intercept.
type readable struct {
	*grpc.Server
	driver *Driver
}

// RegisterService implements grpc.ServiceRegistrar.
func (r readable) RegisterService(service *grpc.ServiceDesc, implementation any) {
	wrapped := *service
	wrapped.Methods = slices.Clone(service.Methods)
	for i, m := range service.Methods {
		wrapped.Methods[i].Handler = func(server any, ctx context.Context, read func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			return m.Handler(server, ctx, func(req any) error { return r.driver.read(m.MethodName, read, req) }, intercept)
		}
	}
	r.Server.RegisterService(&wrapped, implementation)
}

func (d *Driver) read(method string, read func(any) error, req any) error {
	start := time.Now()
	err := read(req)
	if err == nil {
		return nil
	}
	took, told := time.Since(start), err
	if status.Code(err) == codes.ResourceExhausted {
		// gRPC has told the caller both lengths already, but not the flag that sets the limit.
		told = fmt.Errorf("%w (--max-message-bytes)", err)
	}
	d.rpcs.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
	klog.ErrorS(told, "A request could not be read", "method", method, "took", took)
	return err
}

// panicError describes a panic: an error of the runtime by its text, any other value, which could hold anything, by its type.
func panicError(p any) error {
	if err, ok := p.(runtime.Error); ok {
		return err
	}
	return fmt.Errorf("panic with a %T", p)
}

// volumeID is the volume id of a request, or "" if it does not have the form of one: nothing else may get into the log.
func volumeID(req any) string {
	if r, ok := req.(interface{ GetVolumeId() string }); ok && validVolumeID(r.GetVolumeId()) {
		return r.GetVolumeId()
	}
	return ""
}

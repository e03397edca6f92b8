// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// observed registers services in such a way that every call is measured and logged, and that no panic ends the driver.
// A gRPC interceptor would miss requests that gRPC can't read, such as a request that is longer than MaxMessageBytes.
type observed struct {
	*grpc.Server
	driver *Driver
}

// RegisterService implements grpc.ServiceRegistrar.
func (o observed) RegisterService(service *grpc.ServiceDesc, implementation any) {
	wrapped := *service
	wrapped.Methods = slices.Clone(service.Methods)
	for i, m := range service.Methods {
		wrapped.Methods[i].Handler = func(
			server any, ctx context.Context, read func(any) error, _ grpc.UnaryServerInterceptor,
		) (any, error) {
			return o.driver.call(m, server, ctx, read)
		}
	}
	o.Server.RegisterService(&wrapped, implementation)
}

// call reads a request, handles it, and logs one line, without the request, which holds secrets. All lines that the
// handler logs name the method.
func (d *Driver) call(
	m grpc.MethodDesc, server any, ctx context.Context, read func(any) error,
) (resp any, err error) {
	log := klog.LoggerWithValues(klog.FromContext(ctx), "method", m.MethodName)
	start, volume, unread := time.Now(), "", false
	defer func() {
		took := time.Since(start)
		panicked := recover()
		if panicked != nil {
			// The code is not Internal, which is final: the call may have left something, and kubelet must call
			// NodeUnpublishVolume.
			resp, err = nil, status.Errorf(codes.Unavailable, "%s: the driver has a bug; its log has the stack", m.MethodName)
		}
		d.rpcs.WithLabelValues(m.MethodName, status.Code(err).String()).Observe(took.Seconds())
		switch {
		case panicked != nil:
			log.Error(panicError(panicked), "Call panicked", "volume", volume, "took", took, "stack", string(debug.Stack()))
		case unread && status.Code(err) == codes.ResourceExhausted: // The answer of gRPC does not name the flag.
			log.Error(fmt.Errorf("%w (--max-message-bytes)", err), "A request could not be read", "took", took)
		case unread:
			log.Error(err, "A request could not be read", "took", took)
		case err != nil:
			log.Error(err, "Call failed", "volume", volume, "took", took)
		default:
			log.V(4).Info("Call", "volume", volume, "took", took)
		}
	}()
	return m.Handler(server, klog.NewContext(ctx, log), func(req any) error {
		err := read(req)
		volume, unread = volumeID(req), err != nil
		return err
	}, nil)
}

// panicError describes a panic: an error of the runtime by its text, and any other value by its type, because the value
// could hold a secret.
func panicError(p any) error {
	if err, ok := p.(runtime.Error); ok {
		return err
	}
	return fmt.Errorf("panic with a %T", p)
}

// volumeID returns the volume id of a request, or "" if its form is invalid, because only a valid id may be logged.
func volumeID(req any) string {
	if r, ok := req.(interface{ GetVolumeId() string }); ok && validVolumeID(r.GetVolumeId()) {
		return r.GetVolumeId()
	}
	return ""
}

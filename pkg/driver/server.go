// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// drain is the longest time for running calls to end when the driver stops, for each of its two sockets. Kubelet gives
// a pod 30 s to end.
const drain = 10 * time.Second

// Run serves CSI and registers with kubelet. It returns after ctx and all calls have ended, or when serving fails. It
// leaves the mounts as they are.
//
// At the start, Run serves CSI before it creates the registration socket, because kubelet calls NodeGetInfo as soon as
// it sees that socket. At the end, Run removes the registration socket first, so that kubelet sends no more calls, and
// then waits for running calls.
func (d *Driver) Run(ctx context.Context) error {
	working, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var serving sync.WaitGroup
	defer serving.Wait()

	stop, err := d.serve(&serving, fail, d.Endpoint, func(s grpc.ServiceRegistrar) {
		csi.RegisterIdentityServer(s, identity{version: d.Version, volumes: d.Volumes})
		csi.RegisterNodeServer(s, node{id: d.NodeID, binding: d.Binding, volumes: d.Volumes})
	})
	if err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	defer stop()
	failpoint.Hit("driver-serving")
	if d.RegistrationSocket != "" {
		stop, err := d.serve(&serving, fail, d.RegistrationSocket, func(s grpc.ServiceRegistrar) {
			pluginregistration.RegisterRegistrationServer(s, d.registration)
		})
		if err != nil {
			return fmt.Errorf("register with kubelet: %w", err)
		}
		defer stop()
	}
	klog.InfoS("Serving", "endpoint", d.Endpoint, "registration", d.RegistrationSocket)
	<-working.Done()
	if ctx.Err() == nil {
		return context.Cause(working)
	}
	return nil
}

// serve serves on a socket until stop is called. stop waits for running calls.
func (d *Driver) serve(
	serving *sync.WaitGroup, fatal context.CancelCauseFunc, path string, register func(grpc.ServiceRegistrar),
) (stop func(), err error) {
	listener, err := Listen(path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(
		grpc.ConnectionTimeout(3*time.Second),
		grpc.MaxConcurrentStreams(1000),
		grpc.MaxRecvMsgSize(d.MaxMessageBytes),
		// This is gRPC's default. Without the option, the server would measure the bandwidth with a ping in each call.
		grpc.StaticStreamWindowSize(64<<10),
		// A worker goroutine keeps its stack. The stack of a new goroutine would be copied several times until it is large
		// enough for a publish.
		grpc.NumStreamWorkers(2),
	)
	register(observed{server, d})
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			fatal(fmt.Errorf("serve on %s: %w", path, err))
		}
	})
	return func() {
		listener.Unlink()
		failpoint.Hit("driver-vanished")
		force := time.AfterFunc(drain, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	}, nil
}

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
)

// APIServerAddress returns the API server's host:port. It stays the same after a stop and a new start. The serving
// certificate is valid for a proxy on any port of 127.0.0.1 or localhost.
func (cp *ControlPlane) APIServerAddress() string { return cp.ports.apiServer.address }

// StartAPIServer starts the API server after StopAPIServer, on the same port and with the same data, and waits until it
// is ready. It does nothing if the API server is running.
func (cp *ControlPlane) StartAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()

	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopped {
		return fmt.Errorf("start API server: %w", errStopped)
	}
	if cp.apiServer.running() {
		return nil
	}
	server, err := cp.startAPIServer(ctx, "kube-apiserver", cp.ports.apiServer, cp.EtcdAddress())
	if err != nil {
		return err
	}
	cp.apiServer = server
	return nil
}

// StartReplica starts another API server, which reaches etcd at etcdAddress: EtcdAddress, or a proxy in front of it. It
// waits until the API server is ready. The API server runs until stop is called, which must be before Stop. host
// replaces the Host of a configuration of AdminConfig or UserConfig.
func (cp *ControlPlane) StartReplica(ctx context.Context, etcdAddress string) (host string, stop func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()
	port, err := reservePort()
	if err != nil {
		return "", nil, err
	}
	cp.mu.Lock()
	defer cp.mu.Unlock()
	server, err := cp.startAPIServer(ctx, "kube-apiserver-replica", port, etcdAddress)
	if err != nil {
		port.release()
		return "", nil, err
	}
	return "https://" + port.address, func() { server.kill(); port.release() }, nil
}

// startAPIServer starts an API server and waits until it is ready. The caller holds the lock.
func (cp *ControlPlane) startAPIServer(
	ctx context.Context, name string, port port, etcdAddress string,
) (*process, error) {
	server, err := cp.startProcess(name, cp.binaries.apiServer, cp.apiServerArgs(port, etcdAddress)...)
	if err != nil {
		return nil, err
	}
	if err := cp.waitForAPIServer(ctx, server, port); err != nil {
		server.kill()
		return nil, err
	}
	return server, nil
}

// StopAPIServer kills the API server as an outage would, without properly closing the connections of its clients. It
// waits until the process has ended. It does nothing if the API server is not running.
func (cp *ControlPlane) StopAPIServer(ctx context.Context) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.apiServer == nil {
		return nil
	}
	if err := cp.apiServer.killContext(ctx); err != nil {
		return fmt.Errorf("stop API server: %w", err)
	}
	cp.apiServer = nil
	return nil
}

// APIServerPID returns the process id of the API server, or 0 if the API server is not running.
func (cp *ControlPlane) APIServerPID() int {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if !cp.apiServer.running() {
		return 0
	}
	return cp.apiServer.cmd.Process.Pid
}

// Wait blocks until one of the two servers ends, or until ctx ends. The error names the server that ended, with the
// reason. Do not use Wait in a test that stops the API server.
func (cp *ControlPlane) Wait(ctx context.Context) error {
	cp.mu.Lock()
	server, etcd := cp.apiServer, cp.etcd
	cp.mu.Unlock()
	if server == nil {
		return fmt.Errorf("wait for the end of the API server: %w", errNotRunning)
	}
	select {
	case <-etcd.exited:
		return etcd.failure()
	case <-server.exited:
		return server.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (cp *ControlPlane) apiServerArgs(port port, etcdAddress string) []string {
	listen, advertise, reconciler := "127.0.0.1", "127.0.0.1", "none"
	if cp.advertise.IsValid() {
		listen, advertise, reconciler = "0.0.0.0", cp.advertise.String(), "lease"
	}
	args := []string{
		"--etcd-servers=http://" + etcdAddress,

		"--bind-address=" + listen,
		"--secure-port=" + port.port(),
		// Without this flag, the API server uses an address of the default route. A machine or a network namespace need not
		// have one.
		"--advertise-address=" + advertise,
		"--endpoint-reconciler-type=" + reconciler,
		"--service-cluster-ip-range=" + serviceRange,
		"--tls-cert-file=" + cp.path(servingCertFile),
		"--tls-private-key-file=" + cp.path(servingKeyFile),

		"--kubelet-client-certificate=" + cp.path(kubeletClientCertFile),
		"--kubelet-client-key=" + cp.path(kubeletClientKeyFile),
		"--kubelet-preferred-address-types=InternalIP",

		"--client-ca-file=" + cp.path(caFile),
		"--token-auth-file=" + cp.path(tokenFile),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + cp.path(serviceAccountPublicFile),
		"--service-account-signing-key-file=" + cp.path(serviceAccountKeyFile),

		"--authorization-mode=" + cp.authorize,
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", // Node drivers are privileged.

		"--profiling=false",
	}
	return append(args, cp.extraArgs...)
}

// waitForAPIServer waits until the server is ready and the namespace `default` exists, which the server creates a
// little later.
func (cp *ControlPlane) waitForAPIServer(ctx context.Context, server *process, port port) error {
	transport, err := rest.TransportFor(cp.AdminConfig())
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	client := &http.Client{Transport: transport}
	for _, path := range []string{"/readyz", "/api/v1/namespaces/default"} {
		probe := probe{client: client, url: "https://" + port.address + path}
		if err := probe.wait(ctx, server, cp.etcd); err != nil {
			return fmt.Errorf("wait for API server: %w", err)
		}
	}
	return nil
}

var (
	errStopped    = errors.New("the control plane was stopped")
	errNotRunning = errors.New("not running")
)

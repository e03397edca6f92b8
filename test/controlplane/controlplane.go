// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// startTimeout bounds a start if the caller's context does not. A start takes some seconds, and much longer on a busy
// machine.
const startTimeout = 2 * time.Minute

// Options are the options of Start. The zero value is valid.
type Options struct {
	// Dir is the directory for certificates, data and logs. Start creates it if
	// it is missing. It must be empty, and Stop does not remove it. If Dir is
	// the empty string, Start uses a temporary directory that Stop removes.
	Dir string
	// Log receives the output of both servers. If Log is nil, the output goes
	// to the files etcd.log and kube-apiserver.log in Dir.
	Log io.Writer
	// Advertise is the address at which nodes and pods reach the API server.
	// The serving certificate and the service `kubernetes` contain this
	// address, and the API server listens on every address. With the zero
	// value, the API server listens on 127.0.0.1 only, and the service has no
	// address.
	Advertise netip.Addr
	// Port is the port of the API server. With 0, Start uses a free port.
	Port int
	// Kubernetes is the release of the API server. The zero value is the
	// newest.
	Kubernetes tools.Kubernetes
	// AuthorizationMode is the API server's --authorization-mode. The empty
	// string means Node,RBAC. ExtraArgs could only extend the list.
	AuthorizationMode string
	// ExtraArgs are passed to kube-apiserver after the arguments of this
	// package: a repeated flag overrides the earlier one, and a flag with a
	// list extends it.
	ExtraArgs []string
}

// ControlPlane is a running etcd and kube-apiserver. It is safe for concurrent
// use.
type ControlPlane struct {
	dir       string
	removeDir bool
	advertise netip.Addr
	authorize string
	extraArgs []string
	log       io.Writer // nil: files in dir
	binaries  binaries
	pki       *pki
	token     string // of the admin

	keeper *keeper
	ports  ports

	mu        sync.Mutex // guards what follows
	etcd      *process
	apiServer *process // nil: not running
	stopped   bool
}

type binaries struct{ etcd, apiServer string }

// StartForTest is Start for a test. The control plane is stopped when t ends.
func StartForTest(t testing.TB, o Options) *ControlPlane {
	t.Helper()
	cp, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cp.Stop)
	return cp
}

// Start starts etcd and kube-apiserver, and returns when the API server is
// ready and the namespace `default` exists. The context bounds only the start.
// The servers run until Stop.
func Start(ctx context.Context, o Options) (_ *ControlPlane, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()

	o.Kubernetes = cmp.Or(o.Kubernetes, tools.Newest())
	cp := &ControlPlane{
		advertise: o.Advertise, authorize: cmp.Or(o.AuthorizationMode, "Node,RBAC"), extraArgs: o.ExtraArgs,
	}
	if o.Log != nil {
		cp.log = &lockedWriter{w: o.Log}
	}
	defer func() {
		if err != nil {
			cp.Stop()
			err = fmt.Errorf("start control plane: %w", err)
		}
	}()
	if cp.binaries.etcd, err = tools.Path(o.Kubernetes, "etcd"); err != nil {
		return nil, err
	}
	if cp.binaries.apiServer, err = tools.Path(o.Kubernetes, "kube-apiserver"); err != nil {
		return nil, err
	}
	if cp.dir, cp.removeDir, err = makeDir(o.Dir); err != nil {
		return nil, err
	}
	if err := cp.writeCredentials(); err != nil {
		return nil, err
	}
	if cp.ports, err = reservePorts(o.Port); err != nil {
		return nil, err
	}
	cp.keeper = newKeeper()
	if err := cp.startEtcd(ctx); err != nil {
		return nil, err
	}
	if err := cp.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	return cp, nil
}

// Stop kills both servers, waits until they have ended and removes the temporary directory. It may be called
// repeatedly.
func (cp *ControlPlane) Stop() {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopped {
		return
	}
	cp.stopped = true
	// 1. The API server is the first, because it waits and keeps its port if its etcd ends before.
	if cp.apiServer != nil {
		cp.apiServer.kill()
		cp.apiServer = nil
	}
	// 2. etcd is the second.
	if cp.etcd != nil {
		cp.etcd.kill()
	}
	// 3. The last are the thread that kept the servers alive, and their resources.
	if cp.keeper != nil {
		cp.keeper.stop()
	}
	cp.ports.release()
	if cp.removeDir {
		// No process writes to the directory any more. If a file can't be removed, it stays among the temporary files.
		_ = os.RemoveAll(cp.dir)
	}
}

// makeDir returns the directory to use. remove reports whether Stop must remove it.
func makeDir(dir string) (_ string, remove bool, err error) {
	if dir == "" {
		dir, err = os.MkdirTemp("", "fsuser-control-plane-")
		if err != nil {
			return "", false, fmt.Errorf("make temporary folder: %w", err)
		}
		return dir, true, nil
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", false, fmt.Errorf("resolve folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", false, fmt.Errorf("make folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", false, fmt.Errorf("read folder: %w", err)
	}
	if len(entries) > 0 {
		return "", false, fmt.Errorf("use folder %s: %w", dir, errNotEmpty)
	}
	return dir, false, nil
}

var errNotEmpty = errors.New("not empty")

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
)

// startEtcd starts etcd and returns when it serves. The API server would wait
// for etcd itself, but in steps of a second.
func (cp *ControlPlane) startEtcd(ctx context.Context) error {
	client := "http://" + cp.ports.etcdClient.address
	peer := "http://" + cp.ports.etcdPeer.address
	etcd, err := cp.startProcess("etcd", cp.binaries.etcd,
		"--name=etcd",
		"--data-dir="+filepath.Join(cp.dir, "etcd"),
		"--listen-client-urls="+client,
		"--advertise-client-urls="+client,
		"--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer,
		"--initial-cluster=etcd="+peer,
		"--unsafe-no-fsync", // no test needs data after a crash of the machine
		// There is nobody to elect it but itself: do not wait half a second for that.
		"--heartbeat-interval=20",
		"--election-timeout=200",
		"--log-level=warn",
	)
	if err != nil {
		return err
	}
	cp.etcd = etcd
	probe := probe{client: http.DefaultClient, url: client + "/readyz"}
	if err := probe.wait(ctx, etcd); err != nil {
		return fmt.Errorf("wait for etcd: %w", err)
	}
	return nil
}

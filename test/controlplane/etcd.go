// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
)

// The directories of etcd's data, and of the copy that BackUpEtcd makes.
const (
	etcdDir       = "etcd"
	etcdBackupDir = "etcd-backup"
)

// EtcdAddress returns etcd's host:port.
func (cp *ControlPlane) EtcdAddress() string { return cp.ports.etcdClient.address }

// BackUpEtcd copies etcd's data for RestoreEtcd. It stops etcd for a moment, and the API server continues.
func (cp *ControlPlane) BackUpEtcd(ctx context.Context) error {
	return cp.withoutEtcd(ctx, func() error { return copyDir(cp.path(etcdBackupDir), cp.path(etcdDir)) })
}

// RestoreEtcd restores the data of the last BackUpEtcd. etcd then uses the revisions since the backup a second time.
// Stop the API server before, as etcd's documentation requires, and start it afterwards.
func (cp *ControlPlane) RestoreEtcd(ctx context.Context) error {
	return cp.withoutEtcd(ctx, func() error { return copyDir(cp.path(etcdDir), cp.path(etcdBackupDir)) })
}

// AddRevisions raises etcd's revision by n, as "etcdutl snapshot restore --bump-revision" does.
func (cp *ControlPlane) AddRevisions(ctx context.Context, n int) error {
	for range n {
		if err := cp.askEtcd(ctx, "put", map[string]any{"key": []byte("revisions")}, nil); err != nil {
			return fmt.Errorf("raise etcd's revision: %w", err)
		}
	}
	return nil
}

// withoutEtcd stops etcd, calls f and starts etcd again.
func (cp *ControlPlane) withoutEtcd(ctx context.Context, f func() error) error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if err := cp.etcd.killContext(ctx); err != nil {
		return fmt.Errorf("stop etcd: %w", err)
	}
	if err := f(); err != nil {
		return err
	}
	return cp.startEtcd(ctx)
}

// copyDir replaces a directory with a copy of another one.
func copyDir(to, from string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(from))
}

// startEtcd starts etcd and waits until it serves. The API server would also wait for etcd, but in steps of a second.
func (cp *ControlPlane) startEtcd(ctx context.Context) error {
	client := "http://" + cp.EtcdAddress()
	peer := "http://" + cp.ports.etcdPeer.address
	etcd, err := cp.startProcess("etcd", cp.binaries.etcd,
		"--name=etcd",
		"--data-dir="+cp.path(etcdDir),
		"--listen-client-urls="+client,
		"--advertise-client-urls="+client,
		"--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer,
		"--initial-cluster=etcd="+peer,
		"--unsafe-no-fsync", // No test requires data after a crash of the machine.
		// etcd is the only member and elects itself. These values avoid a wait of half a second for that.
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

// Compact removes all versions except the newest from etcd (etcd's API, KV/Compact). The API server does so every
// five minutes. A watch that continues from an older version then gets 410 Gone.
func (cp *ControlPlane) Compact(ctx context.Context) error {
	var newest struct{ Header struct{ Revision string } }
	if err := cp.askEtcd(ctx, "range", map[string]any{"key": []byte{0}, "limit": 1}, &newest); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	compaction := map[string]any{"revision": newest.Header.Revision, "physical": true}
	if err := cp.askEtcd(ctx, "compaction", compaction, nil); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}

// askEtcd posts to etcd's gateway, which translates JSON to gRPC: 64-bit numbers are strings, and bytes are base64.
func (cp *ControlPlane) askEtcd(ctx context.Context, method string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	url := "http://" + cp.EtcdAddress() + "/v3/kv/" + method
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", method, resp.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// Compact removes all versions except the newest from etcd (etcd's API, KV/Compact). The API server does so every
// five minutes. A watch that continues from an older version then gets 410 Gone.
func (cp *ControlPlane) Compact(ctx context.Context) error {
	var newest struct{ Header struct{ Revision string } }
	if err := cp.askEtcd(ctx, "range", map[string]any{"key": []byte{0}, "limit": 1}, &newest); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	if err := cp.askEtcd(ctx, "compaction", map[string]any{"revision": newest.Header.Revision, "physical": true}, nil); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}

// askEtcd posts to etcd's gateway, which has JSON for gRPC: 64-bit numbers are strings, bytes base64.
func (cp *ControlPlane) askEtcd(ctx context.Context, method string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+cp.ports.etcdClient.address+"/v3/kv/"+method, bytes.NewReader(body))
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

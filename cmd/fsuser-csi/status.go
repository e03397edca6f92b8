// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// statusSocket is the socket on which the driver answers "fsuser-csi status". It is in the state directory, which
// only root can enter.
const statusSocket = "status.sock"

func newStatusCommand() *cobra.Command {
	var stateDir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the volumes of this node, why a volume is stale, and why the driver's access does not work",
		Long: `status asks the driver on this node for its access, its volumes and their state. In a cluster:

  kubectl -n fsuser-csi exec ds/fsuser-csi -- /fsuser-csi status`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf(`--output is %q; it must be "table" or "json"`, output)
			}
			node, err := askStatus(cmd.Context(), filepath.Join(stateDir, statusSocket))
			if err != nil {
				return fmt.Errorf("ask the driver (is it running, and is --state-dir the same?): %w", err)
			}
			if output == "json" {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(node)
			}
			return status.Table(cmd.OutOrStdout(), []status.Node{node}, time.Now())
		},
	}
	f := cmd.Flags()
	f.StringVar(&stateDir, "state-dir", defaultStateDir, "state directory of the running driver (its --state-dir)")
	f.StringVarP(&output, "output", "o", "table", `output format: "table" or "json"`)
	return cmd
}

func askStatus(ctx context.Context, socket string) (node status.Node, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: overSocket(socket)}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://driver/status", nil)
	if err != nil {
		return node, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return node, errors.Unwrap(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return node, fmt.Errorf("it answers %s", resp.Status)
	}
	err = json.NewDecoder(resp.Body).Decode(&node)
	return node, err
}

// overSocket returns a transport whose connections all go to a unix socket.
func overSocket(path string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
}

// serveStatus answers "fsuser-csi status" on a socket in stateDir until stop is called.
func serveStatus(stateDir string, node func() status.Node) (stop func(), err error) {
	path := filepath.Join(stateDir, statusSocket)
	listener, err := driver.Listen(path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(node()); err != nil {
			klog.V(2).ErrorS(err, "Status not sent")
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "Serving status ended")
		}
	})
	return func() {
		listener.Unlink()
		server.Close()
		running.Wait()
	}, nil
}

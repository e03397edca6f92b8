// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// upTimeout is for a start with an empty cache. eachTimeout is for a single wait.
const (
	upTimeout   = 45 * time.Minute
	eachTimeout = time.Minute
)

// up starts a cluster of one node in a folder of its own. The cluster ends with the test. The folder is in the cache,
// because temporary folders may be on a tmpfs.
func up(t *testing.T, name string) *cluster.Cluster {
	t.Helper()
	return upNodes(t, name, 1)
}

func upNodes(t *testing.T, name string, nodes int) *cluster.Cluster {
	t.Helper()
	cache, err := tools.Cache()
	if err != nil {
		t.Fatal(err)
	}
	runDir := filepath.Join(cache, "proof", name)
	ctx, cancel := context.WithTimeoutCause(t.Context(), upTimeout, fmt.Errorf("not up after %s", upTimeout))
	defer cancel()
	begin := time.Now()
	c, err := cluster.Up(ctx, cluster.Options{RunDir: runDir, Nodes: nodes, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %.1f s", time.Since(begin).Seconds())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), eachTimeout,
			fmt.Errorf("not down after %s", eachTimeout))
		defer cancel()
		if err := c.Down(ctx); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			_ = os.RemoveAll(runDir)
		}
	})
	return c
}

func eachContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), eachTimeout, fmt.Errorf("not done after %s", eachTimeout))
	t.Cleanup(cancel)
	return ctx
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

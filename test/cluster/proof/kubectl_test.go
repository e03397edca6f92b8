// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// kubectl runs kubectl on the machine, outside of the cluster, and returns its output.
func kubectl(ctx context.Context, t *testing.T, c *cluster.Cluster, stdin string, args ...string) string {
	t.Helper()
	cmd := kubectlCommand(ctx, t, c, args...)
	cmd.Stdin = strings.NewReader(stdin)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

func kubectlCommand(ctx context.Context, t *testing.T, c *cluster.Cluster, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin(), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+t.TempDir())
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// runPod creates the pod of a manifest and waits until it is Ready. If the pod does not become Ready, the test fails
// with the reason.
func runPod(t *testing.T, c *cluster.Cluster, name, manifest string) {
	t.Helper()
	ctx := eachContext(t)
	kubectl(ctx, t, c, manifest, "apply", "-f", "-")
	wait := kubectlCommand(ctx, t, c, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=50s")
	if output, err := wait.CombinedOutput(); err != nil {
		t.Fatalf("wait for pod %s: %v\n%s\n%s", name, err, output, kubectl(ctx, t, c, "", "describe", "pod", name))
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// buildTools compiles the missing tools, with a line for each.
func buildTools(ctx context.Context, k tools.Kubernetes, progress io.Writer) error {
	var missing []string
	for _, tool := range tools.OfCluster(k) {
		if _, err := tools.Path(k, tool.Name); err != nil {
			missing = append(missing, tool.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	cmd, err := goCommand(ctx, append([]string{"run", "./test/cluster/build"}, missing...)...)
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), tools.KubernetesEnv+"="+k.Minor())
	cmd.Stdout, cmd.Stderr = progress, progress
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile %d programs: %w", len(missing), err)
	}
	return nil
}

// buildProgram compiles the command fsuser-cluster, unless it is as new as its source, and returns its path.
func buildProgram(ctx context.Context, cache string) (string, error) {
	dir := filepath.Join(cache, "bin", "fsuser-cluster")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder of fsuser-cluster: %w", err)
	}
	path := filepath.Join(dir, "fsuser-cluster")
	cmd, err := goCommand(ctx, "build", "-buildvcs=false", "-o", path, "./test/cluster/fsuser-cluster")
	if err != nil {
		return "", err
	}
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile fsuser-cluster: %w\n%s", err, output)
	}
	return path, nil
}

// goCommand returns a go command that runs in the root of the repository.
func goCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	root, err := tools.Repository()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // lets the command clean up
	cmd.WaitDelay = 15 * time.Second
	return cmd, nil
}

// readyImages makes the images of every cluster on its first call.
func readyImages(ctx context.Context, cache string, progress io.Writer) ([]string, error) {
	dir := filepath.Join(cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of images: %w", err)
	}
	pause, err := images.Pause(ctx, dir)
	if err != nil {
		return nil, err
	}
	busybox, err := images.Busybox(ctx, dir, progress)
	if err != nil {
		return nil, err
	}
	return []string{pause, busybox}, nil
}

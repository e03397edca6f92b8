// SPDX-License-Identifier: Apache-2.0

// Package apt runs Debian's apt-get.
package apt

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Install installs Debian packages, and prints a line about them to progress.
func Install(ctx context.Context, progress io.Writer, packages ...string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install what these Debian packages have: %s: %w", strings.Join(packages, " "), err)
	}
	fmt.Fprintf(progress, "installing with apt-get: %s\n", strings.Join(packages, " "))
	_, err := Get(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, packages...)...)
	return err
}

// Get runs apt-get and returns its standard output. If apt-get fails, Get updates the package lists, which may be
// missing or outdated, and tries again.
func Get(ctx context.Context, args ...string) (string, error) {
	output, err := run(ctx, args...)
	if err == nil || ctx.Err() != nil {
		return output, err
	}
	if _, err := run(ctx, "update"); err != nil {
		return "", err
	}
	return run(ctx, args...)
}

func run(ctx context.Context, args ...string) (string, error) {
	// Another apt-get may hold dpkg's lock.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	cmd.WaitDelay = 10 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", cmd, err, output, &stderr)
	}
	return string(output), nil
}

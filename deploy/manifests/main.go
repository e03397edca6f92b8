// SPDX-License-Identifier: Apache-2.0

// Command manifests writes the manifests next to the chart, and the README of the chart. Run it at the root of the
// repository.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/fsuser-csi/fsuser-csi/deploy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, "deploy"); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) error {
	for _, m := range deploy.Manifests() {
		content, err := m.Render(ctx, dir)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, m.File), content, 0o644); err != nil {
			return err
		}
	}
	readme, err := deploy.ChartReadme(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "chart", deploy.ChartReadmeFile), readme, 0o644)
}

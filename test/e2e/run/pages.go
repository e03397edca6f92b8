// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/e2e"
)

// runPages runs TestPlatform in a cluster like each platform, or like the one that PLATFORM names. Without PLATFORM,
// the commands of deploy/README.md for the oldest Kubernetes run, too.
func (o options) runPages(ctx context.Context) error {
	platforms, only := e2e.Platforms(), os.Getenv("PLATFORM")
	if only != "" {
		i := slices.IndexFunc(platforms, func(p e2e.Platform) bool { return strings.EqualFold(p.Name, only) })
		if i < 0 {
			return fmt.Errorf("PLATFORM=%s: docs/platforms.md has no command for this platform", only)
		}
		platforms = platforms[i : i+1]
	}
	var failed []error
	for _, p := range platforms {
		failed = append(failed, o.runPlatform(ctx, p))
	}
	if only == "" {
		oldest := tools.Versions()[0]
		fmt.Println("Kubernetes", oldest.Version)
		o.tests = "TestE2E/" + e2e.InstallPage
		_, err := o.runInCluster(ctx, cluster.Options{Kubernetes: oldest})
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func (o options) runPlatform(ctx context.Context, p e2e.Platform) error {
	fmt.Println(p.Name)
	dir, err := os.MkdirTemp("", "fsuser-platform-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kind := cluster.Options{Kubernetes: tools.Newest()}
	if p.KubeletRoot != "" {
		kind.KubeletArgs = []string{"--root-dir=" + p.KubeletRoot}
	}
	if p.Admission != "" {
		file := filepath.Join(dir, "admission.yaml")
		if err := os.WriteFile(file, []byte(p.Admission), 0o600); err != nil {
			return err
		}
		kind.APIServerArgs = []string{"--admission-control-config-file=" + file}
	}
	o.tests = "TestPlatform"
	if _, err := o.runInCluster(ctx, kind, "PLATFORM="+p.Name); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

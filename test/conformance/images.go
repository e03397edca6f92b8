// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// testImages are the names of the images in the tests.
type testImages struct {
	all     []string
	agnhost string // the image that build makes
}

// askedFor reads the names of the images from e2e.test.
func askedFor(ctx context.Context, p programs) (testImages, error) {
	list, err := exec.CommandContext(ctx, p.tests, "--list-images").Output()
	if err != nil {
		return testImages{}, fmt.Errorf("list the images of the tests: %w", err)
	}
	version, err := agnhostVersion(ctx)
	if err != nil {
		return testImages{}, err
	}
	i := testImages{all: strings.Fields(string(list))}
	n := slices.IndexFunc(i.all, func(name string) bool { return path.Base(name) == "agnhost:"+version })
	if n < 0 {
		return testImages{}, fmt.Errorf("the tests use no image of agnhost %s, the version in their module, but: %s",
			version, strings.Join(i.all, " "))
	}
	i.agnhost = i.all[n]
	return i, nil
}

// agnhostVersion reads the version of agnhost from the tests' module.
func agnhostVersion(ctx context.Context) (string, error) {
	tool, err := tools.Lookup(tools.Newest(), "agnhost")
	if err != nil {
		return "", err
	}
	module, err := tool.ModuleDir()
	if err != nil {
		return "", err
	}
	source, err := exec.CommandContext(ctx, "go", "list", "-C", module, "-f", "{{.Dir}}", tool.Package).Output()
	if err != nil {
		return "", fmt.Errorf("find the source of agnhost: %w", err)
	}
	version, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), "VERSION"))
	if err != nil {
		return "", fmt.Errorf("read the version of agnhost: %w", err)
	}
	return strings.TrimSpace(string(version)), nil
}

// build writes the tar of an agnhost image with a shell and commands, like the original image.
func (i testImages) build(ctx context.Context, p programs, dir string) (tar string, err error) {
	files, err := images.BusyboxFiles(ctx, os.Stdout)
	if err != nil {
		return "", err
	}
	tar = filepath.Join(dir, "agnhost.tar")
	return tar, images.Build(tar, images.Image{
		Name:       i.agnhost,
		Files:      append(files, images.File{Path: "/agnhost", Source: p.agnhost, Mode: 0o755}),
		Entrypoint: []string{"/agnhost"},
		Cmd:        []string{"pause"},
	})
}

// tag gives the cluster's images of busybox and pause the names in the tests.
func (i testImages) tag(ctx context.Context, c *cluster.Cluster) error {
	ours := map[string]string{"busybox": images.BusyboxName, "pause": images.PauseName}
	for _, name := range i.all {
		base, _, _ := strings.Cut(path.Base(name), ":")
		if ours[base] == "" {
			continue
		}
		if _, err := c.Run(ctx, "ctr", "--namespace=k8s.io", "images", "tag", "--force", ours[base], name); err != nil {
			return err
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package setup starts a cluster and installs the driver of this tree, for the commands that run tests in a cluster of
// their own.
package setup

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/deploy"
	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

const (
	upTimeout      = 45 * time.Minute // with an empty cache
	installTimeout = 2 * time.Minute
	downTimeout    = 2 * time.Minute
)

// DriverImage builds the driver of this tree and writes an archive of its image to dir. The tag of the image's name is
// also the driver's version.
func DriverImage(ctx context.Context, dir, name string) (archive string, err error) {
	repository, err := tools.Repository()
	if err != nil {
		return "", err
	}
	return DriverImageOf(ctx, repository, dir, name)
}

// DriverImageOf is DriverImage for the tree in another folder.
func DriverImageOf(ctx context.Context, repository, dir, name string) (archive string, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	_, version, tagged := strings.Cut(filepath.Base(name), ":")
	if !tagged {
		return "", fmt.Errorf("image %s of the driver: it has no tag", name)
	}
	cmd := exec.CommandContext(ctx, "make", "image", "VERSION="+version, "IMAGE="+name)
	cmd.Dir = repository
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("image of the driver: %s: %w\n%s", cmd, err, output)
	}
	content, err := os.ReadFile(filepath.Join(repository, "bin", "fsuser-csi-image.tar"))
	if err != nil {
		return "", err
	}
	archive = filepath.Join(dir, "fsuser-csi.tar")
	return archive, os.WriteFile(archive, content, 0o644)
}

// ImageName returns the name of the image in the archive of an OCI image layout (make image, make release).
func ImageName(archive string) (string, error) {
	file, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if err != nil {
			return "", fmt.Errorf("find index.json in %s: %w", archive, err)
		}
		if header.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct{ Annotations map[string]string }
		}
		if err := json.NewDecoder(r).Decode(&index); err != nil {
			return "", fmt.Errorf("index.json of %s: %w", archive, err)
		}
		for _, m := range index.Manifests {
			if name := m.Annotations["io.containerd.image.name"]; name != "" {
				return name, nil
			}
		}
		return "", fmt.Errorf("%s does not name its image", archive)
	}
}

// Cluster starts a cluster and imports tar files of images. With keep, Cluster reuses the cluster of an earlier run in
// the run folder, and end leaves the cluster running. Otherwise end ends the cluster, even after the end of ctx.
func Cluster(
	ctx context.Context, o cluster.Options, keep bool, tars ...string,
) (c *cluster.Cluster, end func() error, err error) {
	if c, err = upOrOpen(ctx, o, keep); err != nil {
		return nil, nil, err
	}
	end = func() error {
		if keep {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
		defer cancel()
		return c.Down(ctx)
	}
	for _, tar := range tars {
		if err := c.Import(ctx, tar); err != nil {
			return nil, nil, errors.Join(err, end())
		}
	}
	return c, end, nil
}

func upOrOpen(ctx context.Context, o cluster.Options, keep bool) (*cluster.Cluster, error) {
	if keep {
		if c, err := cluster.Open(o.RunDir); err == nil {
			return c, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	o.Detach, o.Progress = keep, os.Stdout
	return cluster.Up(ctx, o)
}

// Install applies manifests of the folder deploy, and waits until the driver's pods are ready. The first manifest
// contains the driver, and the image is that of DriverImage. Install restarts pods of an earlier run, because the
// content of the image may have changed.
func Install(ctx context.Context, c *cluster.Cluster, image string, manifests ...string) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	for i, name := range manifests {
		content, err := os.ReadFile(filepath.Join(repository, "deploy", name))
		if err == nil && i == 0 {
			content, err = deploy.WithImage(content, image)
		}
		if err != nil {
			return fmt.Errorf("install the driver: %s: %w", name, err)
		}
		if err := Apply(ctx, c, string(content)); err != nil {
			return fmt.Errorf("install the driver: %s: %w", name, err)
		}
	}
	for _, args := range [][]string{
		{"delete", "pods", "--all"},
		{"rollout", "status", "daemonset/fsuser-csi", "--timeout=60s"},
	} {
		if _, err := c.Run(ctx, "kubectl", append([]string{"--namespace=" + deploy.Namespace}, args...)...); err != nil {
			return fmt.Errorf("install the driver: %w", err)
		}
	}
	return nil
}

// Apply creates or changes the objects of a manifest.
func Apply(ctx context.Context, c *cluster.Cluster, manifest string) error {
	cmd, err := c.Command(ctx, "kubectl", "apply", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(manifest)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, output)
	}
	return nil
}

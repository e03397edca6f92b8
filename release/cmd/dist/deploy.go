// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/deploy"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// chart packages a copy of the chart that names the image of the release. Helm gives the files in the package the times
// that they have in the copy.
func (d *dist) chart(ctx context.Context) error {
	helm, err := tools.Path(tools.Newest(), "helm")
	if err != nil {
		return err
	}
	dir := filepath.Join(d.work, "chart")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(d.root, "deploy", "chart"))); err != nil {
		return err
	}
	if err := nameImage(filepath.Join(dir, "values.yaml"), d.repository); err != nil {
		return err
	}
	readme, err := deploy.ChartReadme(d.work)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, deploy.ChartReadmeFile), readme, 0o644); err != nil {
		return err
	}
	if err := setTimes(dir, time.Unix(0, 0)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, helm, "package", dir, "--destination", d.out)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("helm package: %w\n%s", err, output)
	}
	fmt.Println("fsuser-csi-" + d.appVersion + ".tgz")
	return nil
}

var imageValues = regexp.MustCompile(`(?m)^(  registry: )localhost\n((?:  #.*\n)*  repository: )fsuser-csi$`)

// nameImage sets the registry and the repository of the image in the chart's values.
func nameImage(path, repository string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := len(imageValues.FindAll(content, -1)); n != 1 {
		return fmt.Errorf("%s names the registry and the repository of the image %d times, want once", path, n)
	}
	registry, name, found := strings.Cut(repository, "/")
	if !found {
		return fmt.Errorf("%s is not REGISTRY/NAME", repository)
	}
	content = imageValues.ReplaceAll(content, []byte("${1}"+registry+"\n${2}"+name))
	return os.WriteFile(path, content, 0o644)
}

// setTimes sets the modification time of all files in dir.
func setTimes(dir string, to time.Time) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, to, to)
	})
}

// manifests writes the files that install the driver with kubectl only.
func (d *dist) manifests(context.Context) error {
	for _, m := range deploy.Manifests() {
		if strings.Contains(m.File, "/") {
			continue // a component of kustomize, in the repository only
		}
		content, err := os.ReadFile(filepath.Join(d.root, "deploy", m.File))
		if err == nil && m.Template == "" {
			content, err = deploy.WithImage(content, d.repository+":"+d.appVersion)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.File, err)
		}
		if err := d.write(m.File, content); err != nil {
			return err
		}
	}
	return nil
}

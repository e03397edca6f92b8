// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
)

// release is a release of Debian for an architecture. Its packages come from the mirror of this machine. The machine's
// own configuration of apt does not change.
type release struct {
	suite, arch string
	dir         string // apt's files, and the packages
}

// openRelease reads the package lists of a release.
func openRelease(ctx context.Context, cache, suite, arch string) (*release, error) {
	r := &release{suite: suite, arch: arch, dir: filepath.Join(cache, "debian", suite+"-"+arch)}
	for _, dir := range []string{"lists/partial", "archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(r.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	mirror, err := mirror(ctx)
	if err != nil {
		return nil, err
	}
	source := fmt.Sprintf("deb [arch=%s signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n",
		arch, mirror, suite)
	if err := errors.Join(os.WriteFile(filepath.Join(r.dir, "etc/sources.list"), []byte(source), 0o644),
		os.WriteFile(filepath.Join(r.dir, "status"), nil, 0o644)); err != nil {
		return nil, err
	}
	_, err = apt.Get(ctx, r.options("update")...)
	return r, err
}

// mirror returns the address of the Debian archive that this machine uses.
func mirror(ctx context.Context) (string, error) {
	find := func() (string, error) {
		targets, err := apt.Get(ctx, "indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)", "Created-By: Packages")
		for line := range strings.Lines(targets) {
			// Debian-Security is another archive.
			if site, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian Debian "); ok {
				return site, nil
			}
		}
		return "", err
	}
	site, err := find()
	if site != "" || err != nil {
		return site, err
	}
	// Without package lists, apt does not know the origin.
	if _, err := apt.Get(ctx, "update"); err != nil {
		return "", err
	}
	if site, err = find(); site == "" && err == nil {
		err = errors.New("apt has no source of Debian: add one to /etc/apt/sources.list.d")
	}
	return site, err
}

// options returns options that make apt use the files of the release and none of the machine's own sources.
func (r *release) options(args ...string) []string {
	return append([]string{
		"-o", "Dir::State=" + r.dir, "-o", "Dir::State::status=" + filepath.Join(r.dir, "status"),
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(r.dir, "etc/sources.list"), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::Etc::preferencesparts=-", "-o", "Dir::Cache=" + r.dir,
		"-o", "APT::Architecture=" + r.arch, "-o", "APT::Architectures=" + r.arch, "-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Languages=none", "-o", "Acquire::Check-Valid-Until=false", "--quiet=2",
	}, args...)
}

// fetch downloads a package and unpacks its files into a directory. It returns the directory and the version.
func (r *release) fetch(ctx context.Context, name string) (root, version string, err error) {
	deb, err := r.download(ctx, name)
	if err != nil {
		return "", "", err
	}
	root = strings.TrimSuffix(deb, ".deb")
	if _, err := os.Stat(root); err != nil {
		partial := root + ".partial"
		if err := os.RemoveAll(partial); err != nil {
			return "", "", err
		}
		if _, err := output(ctx, "dpkg-deb", "-x", deb, partial); err != nil {
			return "", "", err
		}
		if err := os.Rename(partial, root); err != nil {
			return "", "", err
		}
	}
	version, err = output(ctx, "dpkg-deb", "-f", deb, "Version")
	return root, strings.TrimSpace(version), err
}

// kernel downloads the kernel on which the package name, for example linux-image-amd64, depends. Since Debian 14, a
// kernel consists of several packages.
func (r *release) kernel(ctx context.Context, name string) (roots []string, version string, err error) {
	images, err := r.dependencies(ctx, name, `linux-image-[0-9][^ ,]*`)
	if err == nil && len(images) != 1 {
		err = fmt.Errorf("%s depends on the kernels %q, want 1", name, images)
	}
	if err != nil {
		return nil, "", err
	}
	parts, err := r.dependencies(ctx, images[0], `linux-(binary|modules)-[^ ,]*`)
	if err != nil {
		return nil, "", err
	}
	for _, part := range append(parts, images[0]) {
		root, v, err := r.fetch(ctx, part)
		if err != nil {
			return nil, "", err
		}
		roots, version = append(roots, root), v
	}
	return roots, version, nil
}

// dependencies returns the packages that a package depends on and whose names match a pattern.
func (r *release) dependencies(ctx context.Context, name, pattern string) ([]string, error) {
	deb, err := r.download(ctx, name)
	if err != nil {
		return nil, err
	}
	depends, err := output(ctx, "dpkg-deb", "-f", deb, "Depends")
	return regexp.MustCompile(pattern).FindAllString(depends, -1), err
}

// download returns the file of a package.
func (r *release) download(ctx context.Context, name string) (string, error) {
	uris, err := apt.Get(ctx, r.options("--print-uris", "download", name)...)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(uris) // 'URL' name size checksum
	if len(fields) < 3 {
		return "", fmt.Errorf("apt-get names no file of %s in %s", name, r.suite)
	}
	deb := filepath.Join(r.dir, "archives", fields[1])
	if _, err := os.Stat(deb); err == nil {
		return deb, nil
	}
	// apt-get download writes into the working directory.
	args := append([]string{"-C", filepath.Dir(deb), "apt-get"}, r.options("download", name)...)
	_, err = output(ctx, "env", args...)
	return deb, err
}

// output runs a program and returns its standard output. The error contains its standard error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", cmd, err, out, &stderr)
	}
	return string(out), nil
}

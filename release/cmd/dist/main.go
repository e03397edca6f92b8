// SPDX-License-Identifier: Apache-2.0

// Command dist writes what a release publishes into a new folder (make release): an archive of the driver's image, the
// chart, the manifests, archives of kubectl-fsuser with the manifest of krew, an SBOM of each program, the notes of the
// release, and the checksums of these files. The same source, arguments and version of Go make the same bytes.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// source is the address of the repository.
const source = "https://github.com/fsuser-csi/fsuser-csi"

func main() {
	var d dist
	flag.StringVar(&d.out, "o", "", "`folder` to make (required)")
	flag.StringVar(&d.version, "version", "", "version of the programs, for example v0.1.0 (required)")
	flag.StringVar(&d.repository, "repository", "localhost/fsuser-csi",
		"`name` of the image in the chart and the manifests, without the tag")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := d.make(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

// dist is a folder with the files of a release.
type dist struct {
	root       string // of the repository
	out        string // the folder
	work       string // a temporary folder
	version    string // of the programs
	appVersion string // of the chart, and the tag of the image
	repository string // of the image
}

// make creates the folder. If it fails, the folder has no checksums.
func (d *dist) make(ctx context.Context) (err error) {
	if d.out == "" || d.version == "" || flag.NArg() > 0 {
		return errors.New("usage: dist -o FOLDER -version VERSION [-repository NAME]")
	}
	if d.root, err = tools.Repository(); err != nil {
		return err
	}
	if err := d.readVersion(); err != nil {
		return err
	}
	if err := os.Mkdir(d.out, 0o755); err != nil {
		return err
	}
	if d.work, err = os.MkdirTemp("", "fsuser-dist-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.work)
	for _, step := range []func(context.Context) error{d.driver, d.plugin, d.chart, d.manifests, d.notes, d.checksums} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// readVersion reads the version of the chart, which must be the version of the release.
func (d *dist) readVersion() error {
	content, err := os.ReadFile(filepath.Join(d.root, "deploy", "chart", "Chart.yaml"))
	if err != nil {
		return err
	}
	var chart struct{ Version, AppVersion string }
	if err := yaml.Unmarshal(content, &chart); err != nil {
		return fmt.Errorf("Chart.yaml: %w", err)
	}
	d.appVersion = chart.AppVersion
	if d.isRelease() && (d.version != "v"+chart.Version || d.version != "v"+chart.AppVersion) {
		return fmt.Errorf("the version is %s, but Chart.yaml has version %s and appVersion %s: set all three to one version",
			d.version, chart.Version, chart.AppVersion)
	}
	return nil
}

var releaseVersion = regexp.MustCompile(`^v\d+\.\d+\.\d+(-(alpha|beta|rc)\.\d+)?$`)

// isRelease reports whether the version is the version of a release, as opposed to a commit between two releases.
func (d *dist) isRelease() bool { return releaseVersion.MatchString(d.version) }

// fileVersion returns the version in the names of files.
func (d *dist) fileVersion() string { return strings.TrimPrefix(d.version, "v") }

// platform is an operating system and an architecture, by Go's names.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "-" + p.arch }

// build builds a program as `make build` does, and writes its SBOM.
func (d *dist) build(ctx context.Context, program string, p platform) (path string, err error) {
	dir := filepath.Join(d.work, p.String())
	path = filepath.Join(dir, program)
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "-C", d.root, "BIN="+dir, "VERSION="+d.version, path)
	cmd.Env = append(os.Environ(), "GOOS="+p.os, "GOARCH="+p.arch)
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s for %s: %w\n%s", program, p, err, output)
	}
	bill, err := sbom(path, d.version)
	if err != nil {
		return "", fmt.Errorf("SBOM of %s for %s: %w", program, p, err)
	}
	return path, d.write(fmt.Sprintf("%s-%s-%s.cdx.json", program, d.fileVersion(), p), bill)
}

// write writes a file of the release.
func (d *dist) write(name string, content []byte) error {
	fmt.Println(name)
	return os.WriteFile(filepath.Join(d.out, name), content, 0o644)
}

// checksums writes checksums.txt, for `sha256sum --check`.
func (d *dist) checksums(context.Context) error {
	entries, err := os.ReadDir(d.out) // sorted by name
	if err != nil {
		return err
	}
	var lines strings.Builder
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(d.out, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(content), e.Name())
	}
	return d.write("checksums.txt", []byte(lines.String()))
}

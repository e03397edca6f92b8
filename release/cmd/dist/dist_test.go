// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/krew/pkg/index"
	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// newDist returns a release of a version, from this repository, in temporary folders.
func newDist(t *testing.T, version string) *dist {
	t.Helper()
	root, err := tools.Repository()
	if err != nil {
		t.Fatal(err)
	}
	return &dist{
		root: root, out: t.TempDir(), work: t.TempDir(), version: version, appVersion: "0.1.0",
		repository: "registry.example.com/team/fsuser-csi",
	}
}

func TestSection(t *testing.T) {
	const changelog = "# Changelog\n\n## Unreleased\n\n## 0.2.0-rc.1 - 2027-01-01\n\n" +
		"- One\n  more.\n\n### Fixed\n\n- Two\n\n## 0.2.0\n\n- Three\n"
	for heading, want := range map[string]string{
		"0.2.0-rc.1": "- One\n  more.\n\n### Fixed\n\n- Two\n",
		"0.2.0":      "- Three\n",
	} {
		if got, err := section(changelog, heading); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", heading, got, err, want)
		}
	}
	for heading, want := range map[string]string{
		"0.1.0": "no section 0.1.0", "0.2": "no section 0.2", "Unreleased": "is empty",
	} {
		if got, err := section(changelog, heading); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want an error with %q", heading, got, err, want)
		}
	}
}

func TestNotesForGitHub(t *testing.T) {
	got := forGitHub("- One\n  line ([page](docs/a.md#b), [site](https://example.com)).\n- Two\n", "https://base/")
	want := "- One line ([page](https://base/docs/a.md#b), [site](https://example.com)).\n- Two\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestVersions compares the version with Chart.yaml.
func TestVersions(t *testing.T) {
	for version, want := range map[string]string{
		"v0.1.0": "", "v99.0.0": "set all three", "v0.1.0-rc.1": "set all three",
		"749cda9": "", "v0.1.0-3-g749cda9": "", "v99.0.0-dirty": "",
	} {
		err := newDist(t, version).readVersion()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error %v, want %q", version, err, want)
		}
	}
}

// TestChart checks the package of the chart. Its files have one time, whenever they were copied.
func TestChart(t *testing.T) {
	d := newDist(t, "v0.1.0")
	if err := d.chart(t.Context()); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(filepath.Join(d.out, "fsuser-csi-0.1.0.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if !content.ModTime.IsZero() {
		t.Errorf("the time of the archive is %v", content.ModTime)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uname != "" || h.Uid != 0 {
			t.Errorf("%s is of %v, user %d %q", h.Name, h.ModTime, h.Uid, h.Uname)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var values struct {
		Image struct{ Registry, Repository string }
	}
	if err := yaml.Unmarshal(files["fsuser-csi/values.yaml"], &values); err != nil {
		t.Fatal(err)
	}
	if i := values.Image; i.Registry != "registry.example.com" || i.Repository != "team/fsuser-csi" {
		t.Errorf("the image in the values is %+v", i)
	}
	if page := string(files["fsuser-csi/README.md"]); !strings.Contains(page, "`registry.example.com`") {
		t.Errorf("the page of the values does not name the registry:\n%s", page)
	}
}

func TestArchives(t *testing.T) {
	d := newDist(t, "v0.1.0")
	program := filepath.Join(d.work, plugin)
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	name, content, err := d.archive(program, platform{"windows", "arm64"})
	if err != nil || name != "kubectl-fsuser-0.1.0-windows-arm64.zip" {
		t.Fatalf("%s, %v", name, err)
	}
	r, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.File) != 2 || r.File[0].Name != "kubectl-fsuser.exe" || r.File[0].Mode() != 0o755 ||
		r.File[1].Name != "LICENSE" {
		t.Errorf("the archive has %+v", r.File)
	}
	if name, _, err := d.archive(program, platform{"darwin", "arm64"}); err != nil ||
		name != "kubectl-fsuser-0.1.0-darwin-arm64.tar.gz" {
		t.Errorf("%s, %v", name, err)
	}
}

func TestKrewManifest(t *testing.T) {
	p := krewPlatform(platform{"windows", "amd64"}, "https://example.com/a.zip", []byte("archive"))
	manifest, err := yaml.Marshal(krewPlugin("v0.1.0", []index.Platform{p}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: fsuser
spec:
  description: |
    For people who use fsuser-csi, a CSI driver whose volumes show Secrets and
    ConfigMaps as files of the user who needs them. The plugin checks clusters and
    manifests, converts manifests, and shows the volumes of all nodes.
  homepage: https://github.com/fsuser-csi/fsuser-csi
  platforms:
  - bin: kubectl-fsuser.exe
    files:
    - from: '*'
      to: .
    selector:
      matchLabels:
        arch: amd64
        os: windows
    sha256: 0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3
    uri: https://example.com/a.zip
  shortDescription: Check clusters and manifests for fsuser.csi.io
  version: v0.1.0
`
	if string(manifest) != want {
		t.Errorf("the manifest is\n%s\nwant\n%s", manifest, want)
	}
}

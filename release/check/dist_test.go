// SPDX-License-Identifier: Apache-2.0

//go:build dist && linux

package check

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/fsuser-csi/fsuser-csi/release/image/imagetest"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// setting returns a variable that make release-check sets.
func setting(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run make release-check", name)
	}
	return value
}

// one returns the content of the only file of the release that matches a pattern.
func one(t *testing.T, pattern string) []byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(setting(t, "FSUSER_DIST"), pattern))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%d files match %s, want 1 (%v)", len(paths), pattern, err)
	}
	return read(t, paths[0])
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// run runs a command and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// names returns the names of the files in dir, sorted.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestChecksums(t *testing.T) {
	var listed []string
	for line := range strings.Lines(string(one(t, "checksums.txt"))) {
		sum, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		listed = append(listed, name)
		if got := sha256.Sum256(one(t, name)); hex.EncodeToString(got[:]) != sum {
			t.Errorf("the checksum of %s is %x, checksums.txt has %s", name, got, sum)
		}
	}
	all := names(t, setting(t, "FSUSER_DIST"))
	if want := slices.DeleteFunc(all, func(n string) bool { return n == "checksums.txt" }); !slices.Equal(listed, want) {
		t.Errorf("checksums.txt lists %q, the release has %q", listed, want)
	}
}

// TestImageAnswersVersion runs the driver from the image of each architecture, the foreign one under emulation.
func TestImageAnswersVersion(t *testing.T) {
	images, _ := imagetest.Open(t, one(t, "*-image.tar"))
	if len(images) != 2 {
		t.Fatalf("the image is for %d architectures, want 2", len(images))
	}
	for architecture, image := range images {
		t.Run(architecture, func(t *testing.T) {
			command := []string{imagetest.Program(t, image), "version"}
			if architecture != runtime.GOARCH {
				command = append([]string{emulator(t, architecture)}, command...)
			}
			got := run(t, command[0], command[1:]...)
			t.Logf("%s: %s", strings.Join(command, " "), got)
			if !strings.HasPrefix(got, "fsuser-csi "+setting(t, "VERSION")+" (") ||
				!strings.HasSuffix(got, ", linux/"+architecture+")\n") {
				t.Errorf("version is %q", got)
			}
		})
	}
}

// emulator returns the emulator of an architecture, and installs the emulator if it is missing.
func emulator(t *testing.T, architecture string) string {
	t.Helper()
	program := map[string]string{"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}[architecture]
	if _, err := exec.LookPath(program); err != nil {
		if err := apt.Install(t.Context(), os.Stderr, "qemu-user-static"); err != nil {
			t.Fatal(err)
		}
	}
	return program
}

// TestPluginAnswersVersion runs kubectl-fsuser from the archive for this machine.
func TestPluginAnswersVersion(t *testing.T) {
	archive := one(t, "kubectl-fsuser-*-linux-"+runtime.GOARCH+".tar.gz")
	content, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var found []string
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, h.Name)
		file, err := io.ReadAll(r)
		if err := errors.Join(err, os.WriteFile(filepath.Join(dir, h.Name), file, h.FileInfo().Mode())); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"kubectl-fsuser", "LICENSE", "kubectl_complete-fsuser"}; !slices.Equal(found, want) {
		t.Errorf("the archive has %q, want %q", found, want)
	}
	if got := run(t, filepath.Join(dir, "kubectl-fsuser"), "--version"); !strings.Contains(got, setting(t, "VERSION")) {
		t.Errorf("version is %q", got)
	}
}

// TestOneImageName compares the name of the image in the archive, the chart and the manifests.
func TestOneImageName(t *testing.T) {
	_, entry := imagetest.Open(t, one(t, "*-image.tar"))
	name := entry.Annotations["io.containerd.image.name"]
	if !strings.HasPrefix(name, setting(t, "REPOSITORY")+":") {
		t.Errorf("the archive names the image %s", name)
	}
	helm, err := tools.Path(tools.Newest(), "helm")
	if err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(t.TempDir(), "chart.tgz")
	if err := os.WriteFile(chart, one(t, "fsuser-csi-*.tgz"), 0o644); err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"chart": run(t, helm, "template", chart, "--kube-version", "1.36.0", "--skip-tests")}
	for _, file := range []string{
		"fsuser-csi.yaml", "fsuser-csi-namespaces.yaml", "fsuser-csi-DANGER-cluster-wide-secrets.yaml",
	} {
		texts[file] = string(one(t, file))
	}
	image := regexp.MustCompile(`(?m)^ *image: "(.*)"$`)
	for what, text := range texts {
		if found := image.FindAllStringSubmatch(text, -1); len(found) != 1 || found[0][1] != name {
			t.Errorf("%s has the images %q, want %s once", what, found, name)
		}
	}
}

// TestSBOMs checks that each SBOM has the modules that the program is known to link, and nothing that changes.
func TestSBOMs(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(setting(t, "FSUSER_DIST"), "*.cdx.json"))
	if err != nil || len(paths) != 8 {
		t.Fatalf("%d SBOMs, want 8 (%v)", len(paths), err)
	}
	for _, path := range paths {
		var bom cdx.BOM
		if err := json.Unmarshal(read(t, path), &bom); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if bom.SerialNumber != "" || bom.Metadata.Timestamp != "" {
			t.Errorf("%s has a serial number or a time", path)
		}
		if purl := bom.Metadata.Component.PackageURL; strings.Contains(purl, "?") {
			t.Errorf("%s has the package URL %s, which depends on the machine", path, purl)
		}
		if bom.Metadata.Component.Version != setting(t, "VERSION") {
			t.Errorf("%s is of version %s", path, bom.Metadata.Component.Version)
		}
		if !slices.ContainsFunc(*bom.Components, func(c cdx.Component) bool { return c.Name == "k8s.io/apimachinery" }) {
			t.Errorf("%s lacks k8s.io/apimachinery", path)
		}
	}
}

// TestKrewManifest has krew's own program check the manifest, which only a release has.
func TestKrewManifest(t *testing.T) {
	if !regexp.MustCompile(`^v\d+\.\d+\.\d+(-(alpha|beta|rc)\.\d+)?$`).MatchString(setting(t, "VERSION")) {
		if slices.Contains(names(t, setting(t, "FSUSER_DIST")), "fsuser.yaml") {
			t.Error("there is a manifest of krew for a version that is no release")
		}
		return
	}
	run(t, "go", "tool", "validate-krew-manifest", "-skip-install", "-manifest",
		filepath.Join(setting(t, "FSUSER_DIST"), "fsuser.yaml"))
}

// TestSecondReleaseHasTheSameBytes releases a clone of the last commit, in another directory.
func TestSecondReleaseHasTheSameBytes(t *testing.T) {
	root, err := tools.Repository()
	if err != nil {
		t.Fatal(err)
	}
	if changed := run(t, "git", "-C", root, "status", "--porcelain", "--untracked-files=no"); changed != "" {
		t.Fatalf("commit these changes first, because the clone does not have them:\n%s", changed)
	}
	cache, err := tools.Cache()
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(t.TempDir(), "somewhere", "else")
	run(t, "git", "clone", "--quiet", root, clone)
	cmd := exec.CommandContext(t.Context(), "make", "release", "VERSION="+setting(t, "VERSION"),
		"REPOSITORY="+setting(t, "REPOSITORY"))
	cmd.Dir, cmd.Env = clone, append(os.Environ(), "FSUSER_CACHE="+cache) // helm is there
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make release: %v\n%s", err, out)
	}
	first, second := setting(t, "FSUSER_DIST"), filepath.Join(clone, "dist")
	if a, b := names(t, first), names(t, second); !slices.Equal(a, b) {
		t.Fatalf("the releases have the files %q and %q", a, b)
	}
	for _, name := range names(t, first) {
		if !bytes.Equal(read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))) {
			t.Errorf("%s differs", name)
		}
	}
	t.Logf("the same bytes in all %d files:\n%s", len(names(t, first)), one(t, "checksums.txt"))
}

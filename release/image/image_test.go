// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/fsuser-csi/fsuser-csi/release/image/imagetest"
)

const tag = "example.com/fsuser-csi:1.0"

func TestImageIsTheDockerfiles(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	stages := strings.Split(string(content), "\nFROM ")
	last := strings.ReplaceAll(stages[len(stages)-1], "\\\n", "")
	if base, _, _ := strings.Cut(last, "\n"); base != "scratch" {
		t.Errorf("the Dockerfile's image is from %s", base)
	}
	config := runConfig("1.0")

	labels := map[string]string{}
	for _, m := range regexp.MustCompile(`([a-z.]+)="([^"]*)"`).FindAllStringSubmatch(instruction(t, last, "LABEL"), -1) {
		labels[m[1]] = strings.ReplaceAll(m[2], "$VERSION", "1.0")
	}
	if !maps.Equal(labels, config.Labels) {
		t.Errorf("labels are %v, the Dockerfile's %v", config.Labels, labels)
	}
	for word, ours := range map[string][]string{"ENTRYPOINT": config.Entrypoint, "CMD": config.Cmd} {
		var theirs []string
		if err := json.Unmarshal([]byte(instruction(t, last, word)), &theirs); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(ours, theirs) {
			t.Errorf("%s is %q, the Dockerfile's %q", word, ours, theirs)
		}
	}
	if got := instruction(t, last, "COPY"); got != "--from=build /"+program+" /"+program {
		t.Errorf("the Dockerfile copies %s", got)
	}
	for line := range strings.Lines(last) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains([]string{"scratch", "ARG", "LABEL", "COPY", "ENTRYPOINT", "CMD", ""}, word) {
			t.Errorf("the Dockerfile has %s, which this image has not", word)
		}
	}
}

// instruction returns the rest of the only line that begins with the word.
func instruction(t *testing.T, stage, word string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^`+word+` +(.*)$`).FindAllStringSubmatch(stage, -1)
	if len(found) != 1 {
		t.Fatalf("the Dockerfile has %d lines of %s", len(found), word)
	}
	return found[0][1]
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	amd := writeProgram(t, dir, elf.EM_X86_64)
	arm := writeProgram(t, dir, elf.EM_AARCH64)
	for _, test := range []struct {
		name     string
		programs []string
		want     []string // architectures
	}{
		{"amd64", []string{amd}, []string{"amd64"}},
		{"arm64", []string{arm}, []string{"arm64"}},
		{"both", []string{arm, amd}, []string{"amd64", "arm64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			archive := build(t, test.programs...)
			images, entry := imagetest.Open(t, archive)
			if got := entry.Annotations["io.containerd.image.name"]; got != tag {
				t.Errorf("containerd would name the image %q, want %s", got, tag)
			}
			if got := slices.Sorted(maps.Keys(images)); !slices.Equal(got, test.want) {
				t.Errorf("architectures are %v, want %v", got, test.want)
			}
			for _, image := range images {
				checkImage(t, image)
			}
			docker := imagetest.Files(t, archive)["manifest.json"]
			if len(test.want) > 1 {
				if docker != nil {
					t.Error("docker would load one of two images under one name")
				}
				return
			}
			checkDockerManifest(t, imagetest.Files(t, archive), docker)
		})
	}
}

// checkImage checks the files and the configuration of a container of the image.
func checkImage(t *testing.T, image v1.Image) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Config.Labels["org.opencontainers.image.version"] != "1.0" {
		t.Errorf("config is %+v", config)
	}
	content := mutate.Extract(image)
	defer content.Close()
	files := tar.NewReader(content)
	h, err := files.Next()
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != program || h.Mode != 0o755 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 ||
		h.Typeflag != tar.TypeReg {
		t.Errorf("the image has %+v", h)
	}
	if h, err := files.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("the image has more: %+v, %v", h, err)
	}
}

// checkDockerManifest checks that docker finds the configuration and the layer.
func checkDockerManifest(t *testing.T, files map[string][]byte, content []byte) {
	t.Helper()
	var all tarball.Manifest
	if err := json.Unmarshal(content, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || !slices.Equal(all[0].RepoTags, []string{tag}) || files[all[0].Config] == nil ||
		len(all[0].Layers) != 1 || files[all[0].Layers[0]] == nil {
		t.Errorf("manifest.json is %s", content)
	}
}

func TestSameInputSameBytes(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	first := build(t, writeProgram(t, one, elf.EM_X86_64), writeProgram(t, one, elf.EM_AARCH64))
	second := build(t, writeProgram(t, two, elf.EM_AARCH64), writeProgram(t, two, elf.EM_X86_64))
	if !bytes.Equal(first, second) {
		t.Error("the bytes differ")
	}
}

func TestRefusedPrograms(t *testing.T) {
	dir := t.TempDir()
	amd, err := os.ReadFile(writeProgram(t, dir, elf.EM_X86_64))
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	big := filepath.Join(dir, "big")
	for path, content := range map[string][]byte{text: []byte("#!/bin/sh\n"), big: append(amd, make([]byte, maxSize)...)} {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want string }{
		{"no such file", filepath.Join(dir, "nothing"), "no such file"},
		{"a script", text, "not a program"},
		{"a program with a loader", shell, "not a static program"},
		{"a program for another machine", writeProgram(t, dir, elf.EM_RISCV), "amd64 and arm64"},
		{"too big", big, "the limit is 20 MiB"},
	} {
		if _, err := New(test.path, "1.0"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.want)
		}
	}
}

func TestOneProgramForEachArchitecture(t *testing.T) {
	path := writeProgram(t, t.TempDir(), elf.EM_X86_64)
	one, two := newTestImage(t, path), newTestImage(t, path)
	name, err := ParseName(tag)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Archive(name, one, two); err == nil || !strings.Contains(err.Error(), "two programs for amd64") {
		t.Errorf("two programs for amd64: error %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"fsuser-csi:1":                  "docker.io/library/fsuser-csi:1",
		"fsuser-csi/fsuser-csi:1":       "docker.io/fsuser-csi/fsuser-csi:1",
		"example.com/fsuser-csi:1.0-A":  "example.com/fsuser-csi:1.0-A",
		"localhost/fsuser-csi:1":        "localhost/fsuser-csi:1",
		"localhost:5000/fsuser-csi:dev": "localhost:5000/fsuser-csi:dev",
	} {
		if r, err := ParseName(name); err != nil || r.String() != want {
			t.Errorf("%s is %v, %v; want %s", name, r, err, want)
		}
	}
	for _, name := range []string{"", "example.com:5000/a", "example.com/A:1", "example.com/a:1@sha256:" +
		strings.Repeat("0", 64)} {
		if r, err := ParseName(name); err == nil || !strings.Contains(err.Error(), "repository:tag") {
			t.Errorf("%q is %v, %v; want an error", name, r, err)
		}
	}
}

// TestDriverInImage checks that the driver fits into the image, and runs from it.
func TestDriverInImage(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, program)
	if out, err := exec.Command("make", "-C", "../..", "BIN="+dir, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	images, _ := imagetest.Open(t, build(t, binary))
	unpacked := imagetest.Program(t, images[runtime.GOARCH])
	if out, err := exec.Command(unpacked, "version").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// writeProgram writes the smallest file that is a program for that machine.
func writeProgram(t *testing.T, dir string, machine elf.Machine) string {
	t.Helper()
	var b bytes.Buffer
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Ehsize: 64, Phentsize: 56, Shentsize: 64,
	}
	if err := binary.Write(&b, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, machine.String())
	if err := os.WriteFile(path, b.Bytes(), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// build returns the archive of an image of the programs.
func build(t *testing.T, programs ...string) []byte {
	t.Helper()
	name, err := ParseName(tag)
	if err != nil {
		t.Fatal(err)
	}
	var images []v1.Image
	for _, path := range programs {
		images = append(images, newTestImage(t, path))
	}
	archive, err := Archive(name, images...)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func newTestImage(t *testing.T, path string) v1.Image {
	t.Helper()
	image, err := New(path, "1.0")
	if err != nil {
		t.Fatal(err)
	}
	return image
}

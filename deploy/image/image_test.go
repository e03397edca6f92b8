// SPDX-License-Identifier: Apache-2.0

package main

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
	"slices"
	"strings"
	"testing"
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

// instruction returns what follows the only line that begins with the word.
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
		binaries []string
		want     []string // architectures
	}{
		{"amd64", []string{amd}, []string{"amd64"}},
		{"arm64", []string{arm}, []string{"arm64"}},
		{"both", []string{arm, amd}, []string{"amd64", "arm64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := build(t, append([]string{"-tag", tag}, test.binaries...)...)
			if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
				t.Errorf("oci-layout is %s", got)
			}
			var entry index
			decode(t, files["index.json"], &entry)
			if len(entry.Manifests) != 1 || entry.Manifests[0].Annotations["io.containerd.image.name"] != tag {
				t.Fatalf("index.json is %+v", entry)
			}
			all := entry.Manifests
			if all[0].MediaType == indexType {
				var nested index
				decode(t, blob(t, files, all[0]), &nested)
				all = nested.Manifests
			}
			var architectures []string
			for _, d := range all {
				architectures = append(architectures, d.Platform.Architecture)
				checkImage(t, files, d)
			}
			if !slices.Equal(architectures, test.want) {
				t.Errorf("architectures are %v, want %v", architectures, test.want)
			}
			var docker []dockerManifest
			if len(test.want) > 1 {
				if files["manifest.json"] != nil {
					t.Error("docker would load one of two images under one name")
				}
				return
			}
			decode(t, files["manifest.json"], &docker)
			if len(docker) != 1 || !slices.Equal(docker[0].RepoTags, []string{tag}) || files[docker[0].Config] == nil ||
				files[docker[0].Layers[0]] == nil {
				t.Errorf("manifest.json is %+v", docker)
			}
		})
	}
}

// checkImage follows the digests from a manifest to the one file of the one layer.
func checkImage(t *testing.T, files map[string][]byte, d descriptor) {
	t.Helper()
	var m manifest
	decode(t, blob(t, files, d), &m)
	var c imageConfig
	decode(t, blob(t, files, m.Config), &c)
	if len(m.Layers) != 1 {
		t.Fatalf("layers are %v", m.Layers)
	}
	layer := blob(t, files, m.Layers[0])
	if c.Architecture != d.Platform.Architecture || c.OS != "linux" ||
		!slices.Equal(c.RootFS.DiffIDs, []string{digest(layer)}) {
		t.Errorf("config is %+v", c)
	}
	if c.Config.Labels["org.opencontainers.image.version"] != "1.0" {
		t.Errorf("labels are %v", c.Config.Labels)
	}
	r := tar.NewReader(bytes.NewReader(layer))
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != program || h.Mode != 0o755 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 ||
		h.Typeflag != tar.TypeReg {
		t.Errorf("the layer has %+v", h)
	}
	if h, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("the layer has more: %+v, %v", h, err)
	}
}

func TestSameInputSameBytes(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for i, dir := range []string{one, two} {
		binaries := []string{writeProgram(t, dir, elf.EM_X86_64), writeProgram(t, dir, elf.EM_AARCH64)}
		if i == 1 {
			slices.Reverse(binaries)
		}
		if err := run(append([]string{"-o", filepath.Join(dir, "image.tar"), "-tag", tag}, binaries...)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(read(t, filepath.Join(one, "image.tar")), read(t, filepath.Join(two, "image.tar"))) {
		t.Error("the bytes differ")
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	amd := writeProgram(t, dir, elf.EM_X86_64)
	text := filepath.Join(dir, "text")
	big := filepath.Join(dir, "big")
	for path, content := range map[string][]byte{text: []byte("#!/bin/sh\n"),
		big: append(read(t, amd), make([]byte, maxSize)...)} {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no tag", []string{amd}, "repository:tag"},
		{"a name without a tag", []string{"-tag", "example.com:5000/a", amd}, "repository:tag"},
		{"a name in capitals", []string{"-tag", "Example/a:1", amd}, "repository:tag"},
		{"no binary", []string{"-tag", tag}, "no binary"},
		{"no such file", []string{"-tag", tag, filepath.Join(dir, "nothing")}, "no such file"},
		{"a script", []string{"-tag", tag, text}, "not a program"},
		{"a program with a loader", []string{"-tag", tag, shell}, "not a static program"},
		{"a program for another machine", []string{"-tag", tag, writeProgram(t, dir, elf.EM_RISCV)}, "amd64 and arm64"},
		{"too big", []string{"-tag", tag, big}, "the most is 20"},
		{"one architecture twice", []string{"-tag", tag, amd, amd}, "two binaries for amd64"},
	} {
		output := filepath.Join(dir, "refused.tar")
		err := run(append([]string{"-o", output}, test.args...))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", test.name, err, test.want)
		}
		if _, err := os.Stat(output); err == nil {
			t.Errorf("%s: there is an image", test.name)
		}
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
		r, err := parseReference(name)
		if err != nil || r.full() != want {
			t.Errorf("%s is %s, %v; want %s", name, r.full(), err, want)
		}
	}
}

// The driver itself, as `make build` makes it, fits and runs from the image.
func TestDriverInImage(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "fsuser-csi")
	cmd := exec.Command("make", "-C", "../..", "BIN="+dir, binary)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files := build(t, "-tag", tag, binary)
	var docker []dockerManifest
	decode(t, files["manifest.json"], &docker)
	r := tar.NewReader(bytes.NewReader(files[docker[0].Layers[0]]))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	unpacked := filepath.Join(dir, "unpacked")
	if err := os.WriteFile(unpacked, content, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(unpacked, "version").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("the image has %.1f MiB", float64(len(content))/(1<<20))
}

// writeProgram writes the least that is a program for that machine.
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

// build runs the program, and returns the files of the archive.
func build(t *testing.T, args ...string) map[string][]byte {
	t.Helper()
	output := filepath.Join(t.TempDir(), "image.tar")
	if err := run(append([]string{"-o", output}, args...)); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(read(t, output)))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// blob returns what a descriptor describes, and checks that it does.
func blob(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	b, ok := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if !ok || digest(b) != d.Digest || len(b) != d.Size {
		t.Fatalf("blob of %+v: there %v, %d bytes, %s", d, ok, len(b), digest(b))
	}
	return b
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr", "bin", "old"), []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	image := Image{
		Name: "example.test/image:1",
		Root: root,
		Files: []File{
			{Path: "/etc/app/secret", Content: []byte("word"), Mode: 0o400, UID: 7, GID: 8},
			{Path: "/usr/bin/old", Content: []byte("new"), Mode: fs.ModeSetuid | 0o755},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			{Path: "/link", Symlink: "tmp"},
		},
		Cmd: []string{"/usr/bin/old"},
	}
	first := buildAndRead(t, image)
	if second := buildAndRead(t, image); !bytes.Equal(first, second) {
		t.Error("the same image twice gives two different tars")
	}

	archive := readTar(t, first)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal([]byte(archive["manifest.json"].content), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || len(manifest[0].Layers) != 1 || manifest[0].RepoTags[0] != image.Name {
		t.Fatalf("manifest %+v, want one layer of %s", manifest, image.Name)
	}
	if config := archive[manifest[0].Config].content; !strings.Contains(config, `"Cmd":["/usr/bin/old"]`) ||
		!strings.Contains(config, defaultPath) {
		t.Errorf("configuration %s has not the command and the path", config)
	}
	layer := readTar(t, []byte(archive[manifest[0].Layers[0]].content))
	for path, want := range map[string]string{
		"etc/":           fmt.Sprintf("%o 0:0 ", 0o755),
		"etc/app/secret": "400 7:8 word",
		"usr/bin/old":    "4755 0:0 new",
		"tmp/":           "1777 0:0 ",
		"link":           "777 0:0 ->tmp",
		"bin":            fmt.Sprintf("777 %d:%d ->usr/bin", os.Getuid(), os.Getgid()),
	} {
		if got := layer[path].String(); got != want {
			t.Errorf("%s in the layer is %q, want %q", path, got, want)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, image := range map[string]Image{
		"no name":                       {},
		"a relative path":               {Name: "a:1", Files: []File{{Path: "etc"}}},
		"a source that is not there":    {Name: "a:1", Files: []File{{Path: "/a", Source: "/no/such/file"}}},
		"a file in a file":              {Name: "a:1", Files: []File{{Path: "/a"}, {Path: "/a/b"}}},
		"a root folder that is missing": {Name: "a:1", Root: "/no/such/folder"},
	} {
		dir := t.TempDir()
		if err := Build(filepath.Join(dir, "image.tar"), image); err == nil {
			t.Errorf("%s: Build succeeded", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: Build left %v, %v", name, left, err)
		}
	}
}

func TestWithLibraries(t *testing.T) {
	files, err := WithLibraries(FromHost("/bin/sh"), File{Path: "/etc/text", Content: []byte("text")})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, file := range files {
		paths = append(paths, file.Path)
	}
	for _, want := range []string{"/libc.so.6", "/ld-linux"} {
		if all := strings.Join(paths, " "); !strings.Contains(all, want) {
			t.Skipf("the machine's /bin/sh is static, or of another C library: %s", all)
		}
	}
	if again, err := WithLibraries(files...); err != nil || len(again) != len(files) {
		t.Errorf("a second time there are %d files, %v, want %d", len(again), err, len(files))
	}
}

func buildAndRead(t *testing.T, image Image) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := Build(path, image); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

type member struct {
	header  *tar.Header
	content string
}

func (m member) String() string {
	if m.header == nil {
		return "missing"
	}
	content := m.content
	if m.header.Linkname != "" {
		content = "->" + m.header.Linkname
	}
	return fmt.Sprintf("%o %d:%d %s", m.header.Mode, m.header.Uid, m.header.Gid, content)
}

func readTar(t *testing.T, content []byte) map[string]member {
	t.Helper()
	members := make(map[string]member)
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		members[header.Name] = member{header, string(body)}
	}
}

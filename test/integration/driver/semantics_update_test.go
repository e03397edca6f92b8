// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

func TestTheLayoutIsThatOfKubernetes(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"a": "1", "b": "2"})
	p, v := shared.describe(t, secretVolume(name, false, items("a", "a", "b", "etc/b")...), "uid", "1000", "gid", "2000")
	s := see(t, d, p, v)
	want := []string{
		"d0755 1000:2000 .",
		"l0000 1000:2000 ..data -> " + tree.Generation,
		"d0755 1000:2000 " + tree.Generation,
		`-0400 1000:2000 ` + tree.Generation + `/a "1"`,
		"d0755 1000:2000 " + tree.Generation + "/etc",
		`-0400 1000:2000 ` + tree.Generation + `/etc/b "2"`,
		"l0000 1000:2000 a -> ..data/a",
		"l0000 1000:2000 etc -> ..data/etc",
	}
	s.is(want...)
	setSecret(t, name, files{"a": "3", "b": "4"})
	s.becomes(files{"a": "3", "etc/b": "4"})
	want[3], want[5] = strings.Replace(want[3], "1\"", "3\"", 1), strings.Replace(want[5], "2\"", "4\"", 1)
	s.is(want...)
}

// inode returns the inode of a file, directory or link.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestAnUpdateIsANewGenerationBehindTheSameNames(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"a": "1", "b": "1"})
	s := see(t, d, pod("update"), ssh("secretName", name))
	generation := func() string {
		t.Helper()
		g, err := os.Readlink(filepath.Join(s.dir, "..data"))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	mountID := func() string { return strings.Fields(testkit.MountsBelow(t, s.target)[0])[0] }
	before, link, mount := generation(), inode(t, s.dir+"/b"), mountID()
	open, err := os.Open(s.dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	setSecret(t, name, files{"a": "2", "b": "1", "c": "1"})
	s.becomes(files{"a": "2", "b": "1", "c": "1"})
	if now := generation(); now == before {
		t.Errorf("the new version has the old one's generation %s", now)
	}
	if _, err := os.Lstat(filepath.Join(s.dir, before)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old generation is still there: %v", err)
	}
	if now := inode(t, s.dir+"/b"); now != link {
		t.Error("the link of a file that stays was made anew")
	}
	if now := mountID(); now != mount {
		t.Errorf("the volume was mounted anew: mount %s, before: %s", now, mount)
	}
	// An open file keeps showing the old version, as a whole.
	b := make([]byte, 10)
	if n, err := open.ReadAt(b, 0); string(b[:n]) != "1" {
		t.Errorf("a file that was open before the update reads %q, %v", b[:n], err)
	}
}

func TestAChangeOfMetadataAloneWritesNothing(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	s := see(t, d, pod("metadata"), ssh("secretName", name))
	generation := inode(t, s.dir+"/..data")
	patch := []byte(`{"metadata": {"labels": {"changed": "yes"}}}`)
	changed, err := shared.CoreV1().Secrets(namespace).Patch(context.Background(), name, types.MergePatchType, patch,
		metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, "the driver to have seen the change",
		func() bool { return strings.Contains(d.Status(), " "+changed.ResourceVersion+" ") })
	if now := inode(t, s.dir+"/..data"); now != generation {
		t.Error("a label of the Secret was changed, and the volume was written")
	}
}

func TestAReaderNeverSeesAMixOfVersions(t *testing.T) {
	const updates, readers = 100, 4
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	version := func(i int) files {
		v := fmt.Sprint(i)
		return files{"a": v, "b": v, "c": strings.Repeat(v, 1000)}
	}
	setSecret(t, name, version(0))
	p, v := shared.describe(t, secretVolume(name, false, items("a", "a", "b", "etc/b", "c", "c")...))
	s := see(t, d, p, v)
	done := make(chan struct{})
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for reads := 0; ; reads++ {
				select {
				case <-done:
					if reads == 0 {
						t.Error("a reader got to read nothing")
					}
					return
				default:
				}
				a, b, c, err := readVersion(s.dir)
				if err != nil {
					t.Errorf("a reader was disturbed: %v", err)
				} else if a != b || c != strings.Repeat(a, 1000) {
					t.Errorf("a reader saw version %q of a, %q of b, and %d bytes of c", a, b, len(c))
				}
			}
		})
	}
	for i := 1; i <= updates; i++ {
		setSecret(t, name, version(i))
	}
	last := version(updates)
	holds(t, s.dir+"/etc/b", last["b"])
	close(done)
	reading.Wait()
}

// readVersion reads three files of one version: it opens ..data once, and reads all files through it. If the version is
// removed in the meantime, it begins again.
func readVersion(dir string) (a, b, c string, err error) {
	for {
		// The link always exists, but its target may be removed before it is opened.
		if _, err := os.Readlink(filepath.Join(dir, "..data")); err != nil {
			return "", "", "", err
		}
		root, err := os.OpenRoot(filepath.Join(dir, "..data"))
		if errors.Is(err, os.ErrNotExist) {
			// The version was removed between reading the link and opening its target.
			continue
		}
		if err != nil {
			return "", "", "", err
		}
		texts, err := readAll(root, "a", "etc/b", "c")
		root.Close()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", "", err
		}
		return texts[0], texts[1], texts[2], nil
	}
}

func readAll(root *os.Root, paths ...string) (texts []string, err error) {
	for _, path := range paths {
		text, err := root.ReadFile(path)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

// Kubelet binds the file behind the link into the container once, when the container starts.
func TestASubPathShowsWhatWasThereWhenTheContainerStarted(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	p, v := shared.describe(t, secretVolume(name, false, items("k", "etc/k")...), "uid", "1000")
	s := see(t, d, p, v)
	for _, subPath := range []string{"etc", "etc/k"} {
		resolved, err := filepath.EvalSymlinks(filepath.Join(s.target, subPath))
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(t.TempDir(), "mount")
		file := at
		if subPath == "etc" {
			err = os.Mkdir(at, 0o755)
			file = at + "/k"
		} else {
			err = os.WriteFile(at, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(resolved, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		defer func() {
			if b, err := os.ReadFile(file); err == nil && string(b) != "1" || err != nil && subPath == "etc/k" {
				t.Errorf("subPath %s reads %q, %v after an update", subPath, b, err)
			}
		}()
	}
	setSecret(t, name, files{"k": "2"})
	s.becomes(files{"etc/k": "2"})
}

// For a subPath that does not exist, kubelet tries to make a directory in the volume, on the host.
func TestNobodyCanMakeADirectoryInAVolumeNotEvenOnTheHost(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	s := see(t, d, pod("subpath"), ssh("secretName", name))
	for _, dir := range []string{s.target, s.dir} {
		if err := os.Mkdir(filepath.Join(dir, "missing"), 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("mkdir in %s: %v, want a read-only file system", dir, err)
		}
	}
	s.becomes(files{"k": "1"})
}

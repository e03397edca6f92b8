// SPDX-License-Identifier: Apache-2.0

//go:build linux

package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
)

// Unpack makes a root file system from Debian packages and their dependencies, in a folder below cache, and returns
// that folder. The caller may read it, but not change it. A later call uses the folder again. Delete the cache to get
// newer versions of the packages.
//
// The packages are unpacked, but not installed: their scripts have not run. So there are no users except root, no
// alternatives, no collection of certificates, and no initialized databases. Add missing files with Image.Files. An
// essential package is missing unless it is named, or another package depends on it: /bin/sh is in dash, and the usual
// commands are in coreutils.
//
// Unpack requires apt-get and dpkg-deb.
func Unpack(ctx context.Context, cache string, packages ...string) (root string, err error) {
	return UnpackSuite(ctx, cache, "", packages...)
}

// UnpackSuite is Unpack with the packages of a suite of Debian, such as forky. An empty suite means the package sources
// of the machine.
func UnpackSuite(ctx context.Context, cache, suite string, packages ...string) (root string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("unpack %s: %w", strings.Join(packages, ", "), err)
		}
	}()
	packages = slices.Sorted(slices.Values(packages))
	key, err := contentKey(runtime.GOARCH, packages)
	if err != nil {
		return "", err
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return "", err
	}
	root = filepath.Join(cache, "root-"+suite+key)
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(cache, ".unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	source, err := useSuite(ctx, work, suite)
	if err != nil {
		return "", err
	}
	debs, err := download(ctx, work, filepath.Join(cache, "debs"), source, packages)
	if err != nil {
		return "", err
	}
	partial := filepath.Join(work, "root")
	if err := makeMergedUsr(partial); err != nil {
		return "", err
	}
	for _, deb := range debs {
		if err := unpackDeb(ctx, deb, partial); err != nil {
			return "", err
		}
	}
	if err := addRootUser(partial); err != nil {
		return "", err
	}
	err = os.Rename(partial, root)
	if errors.Is(err, fs.ErrExist) { // Another process was faster.
		err = nil
	}
	return root, err
}

// useSuite downloads the package lists of a suite, and returns the options with which apt-get takes packages only from
// that suite.
func useSuite(ctx context.Context, work, suite string) (options []string, err error) {
	if suite == "" {
		return nil, nil
	}
	list, lists := filepath.Join(work, "sources.list"), filepath.Join(work, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return nil, err
	}
	source := "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian " + suite +
		" main\n"
	if err := os.WriteFile(list, []byte(source), 0o644); err != nil {
		return nil, err
	}
	options = []string{
		"-o", "Dir::Etc::sourcelist=" + list,
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State::lists=" + lists,
		"-o", "Dir::Cache=" + filepath.Join(work, "cache"),
		"-o", "APT::Sandbox::User=root",
	}
	_, err = apt.Get(ctx, append(options, "update")...)
	return options, err
}

// download downloads the packages and the dependencies that apt-get resolves for a machine without installed packages.
// It returns their files.
func download(ctx context.Context, work, debs string, source, packages []string) ([]string, error) {
	empty := filepath.Join(work, "archives")
	for _, dir := range []string{debs, empty} {
		if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
			return nil, err
		}
	}
	status := filepath.Join(work, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	install := func(archives, mode string) []string {
		options := append(slices.Clone(source),
			"-o", "Dir::State::status="+status,
			"-o", "Dir::State::extended_states="+filepath.Join(work, "extended_states"),
			"-o", "Dir::Cache::archives="+archives,
			"-o", "Debug::NoLocking=true", // A second apt-get would fail with apt's lock. Our lock makes it wait.
			"-o", "APT::Sandbox::User=root",
			"--no-install-recommends", "--yes", "--quiet=2", mode, "install")
		return append(options, packages...)
	}
	unlock, err := lockFolder(ctx, debs)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := apt.Get(ctx, install(debs, "--download-only")...); err != nil {
		return nil, err
	}
	// The names are those of a download into an empty folder.
	uris, err := apt.Get(ctx, install(empty, "--print-uris")...)
	if err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(uris) {
		// 'URL' name size checksum
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasPrefix(line, "'") {
			files = append(files, filepath.Join(debs, fields[1]))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("apt-get names no file:\n%s", uris)
	}
	return files, nil
}

// makeMergedUsr makes the links from /bin and similar folders to those below /usr.
func makeMergedUsr(root string) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o777); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky)
}

// unpackDeb is dpkg-deb -x, but it keeps the links of makeMergedUsr, which dpkg-deb would replace by folders.
func unpackDeb(ctx context.Context, deb, root string) error {
	unpack := exec.CommandContext(ctx, "tar", "-C", root, "--keep-directory-symlink", "--same-owner", "-xpf", "-")
	read := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := read.StdoutPipe()
	if err != nil {
		return err
	}
	unpack.Stdin = pipe
	if err := read.Start(); err != nil {
		return fmt.Errorf("%s: %w", read, err)
	}
	output, unpackErr := unpack.CombinedOutput()
	if err := errors.Join(read.Wait(), unpackErr); err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", deb, err, output)
	}
	return nil
}

// addRootUser adds the user of base-passwd, because programs require a name for their user.
func addRootUser(root string) error {
	for name, content := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":  "root:x:0:\nnogroup:x:65534:\n",
	} {
		path := filepath.Join(root, "etc", name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

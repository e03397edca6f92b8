// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
)

// imageName returns the reference of the image with the programs of a suite.
func imageName(suite string) string {
	if suite == "" {
		return "fsuser.test/gallery:1"
	}
	return "fsuser.test/gallery:" + suite
}

// suites returns the suites of Debian that contain the programs.
func suites() (all []string) {
	for _, p := range programs {
		if !slices.Contains(all, p.suite) {
			all = append(all, p.suite)
		}
	}
	return all
}

// versionsFile is a file of the image: a line "package version" for each program.
const versionsFile = "/usr/share/gallery/versions"

// packages are the packages for the scripts, in addition to those of the programs.
var packages = []string{"coreutils", "dash", "grep", "libc-bin", "netbase", "openssl", "sed"}

// superfluous are the files of packages that no program uses at run time.
var superfluous = []string{
	"usr/include", "usr/share/doc", "usr/share/i18n", "usr/share/info", "usr/share/locale", "usr/share/man",
	"usr/share/postgresql/*/man",
	"usr/lib/*/libLLVM*", "usr/lib/*/dri", "usr/lib/postgresql/*/lib/bitcode", "usr/lib/postgresql/*/lib/llvmjit*",
	"usr/lib/gcc",
}

// Images makes the images of the gallery's programs, one for each suite, in a cache folder. It returns the paths of
// their tar files.
func Images(ctx context.Context, cache string) (tars []string, err error) {
	for _, suite := range suites() {
		tar, err := image(ctx, cache, suite)
		if err != nil {
			return nil, fmt.Errorf("make the image %s: %w", imageName(suite), err)
		}
		tars = append(tars, tar)
	}
	return tars, nil
}

// image makes the image of a suite's programs.
func image(ctx context.Context, cache, suite string) (tar string, err error) {
	wanted := slices.Clone(packages)
	for _, p := range programs {
		if p.suite == suite {
			wanted = append(wanted, p.packages...)
		}
	}
	slices.Sort(wanted)
	root, err := images.UnpackSuite(ctx, filepath.Join(cache, "debian"), suite, slices.Compact(wanted)...)
	if err != nil {
		return "", err
	}
	folder := filepath.Join(cache, "gallery")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(folder, ".image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	slim, err := slimCopy(ctx, root, filepath.Join(work, "root"))
	if err != nil {
		return "", err
	}
	files, err := imageFiles(ctx, suite, root, work)
	if err != nil {
		return "", err
	}
	tar = filepath.Join(folder, "gallery"+suite+".tar")
	return tar, images.Build(tar, images.Image{Name: imageName(suite), Root: slim, Files: files,
		Cmd: []string{"/bin/sh"}, Env: []string{"LC_ALL=C.UTF-8"}})
}

// slimCopy makes a copy of hard links, without the superfluous files, and with the links to libraries that installing
// the packages would have made.
func slimCopy(ctx context.Context, root, slim string) (string, error) {
	if output, err := exec.CommandContext(ctx, "cp", "--archive", "--link", root, slim).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy %s: %w\n%s", root, err, output)
	}
	for _, pattern := range superfluous {
		found, err := filepath.Glob(filepath.Join(slim, pattern))
		if err != nil {
			return "", err
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return "", err
			}
		}
	}
	if output, err := exec.CommandContext(ctx, "ldconfig", "-r", slim).CombinedOutput(); err != nil {
		return "", fmt.Errorf("ldconfig -r %s: %w\n%s", slim, err, output)
	}
	return slim, nil
}

// imageFiles returns the files that installing the packages would have made, and our own.
func imageFiles(ctx context.Context, suite, root, work string) ([]images.File, error) {
	counterpart := filepath.Join(work, "counterpart")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", counterpart,
		"github.com/fsuser-csi/fsuser-csi/test/gallery/counterpart")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", build, err, output)
	}
	versions, err := versionsOf(suite, root)
	if err != nil {
		return nil, err
	}
	return []images.File{
		{Path: "/etc/passwd",
			Content: []byte("root:x:0:0:root:/root:/bin/sh\n" +
				"sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\napp:x:1000:1000:app:/home/app:/bin/sh\n")},
		{Path: "/etc/group", Content: []byte("root:x:0:\napp:x:1000:\nnogroup:x:65534:\n")},
		{Path: "/etc/nsswitch.conf", Content: []byte("passwd: files\ngroup: files\nhosts: files\n")},
		{Path: "/etc/pam.d/other", Content: []byte(pam)},
		{Path: "/etc/pam.d/sudo", Content: []byte(pam)},
		{Path: "/home/app", Mode: fs.ModeDir | 0o755, UID: 1000, GID: 1000},
		{Path: "/run/user/1000", Mode: fs.ModeDir | 0o700, UID: 1000, GID: 1000},
		{Path: "/usr/local/bin/await", Mode: 0o755, Content: []byte(await)},
		{Path: "/usr/local/bin/counterpart", Mode: 0o755, Source: counterpart},
		{Path: versionsFile, Content: []byte(versions)},
	}, nil
}

// pam permits no login with a password.
const pam = "auth required pam_deny.so\naccount required pam_permit.so\npassword required pam_deny.so\nsession " +
	"required pam_permit.so\n"

// await is a command: await SECONDS WHAT COMMAND... waits until the command succeeds, or the process AWAIT_PID has
// ended.
const await = `#!/bin/sh
end=$(($(date +%s) + $1)); what=$2; shift 2
until "$@" >/dev/null 2>&1; do
	if [ -n "$AWAIT_PID" ] && ! kill -0 "$AWAIT_PID" 2>/dev/null; then
		echo "await: no $what: the process has ended" >&2; exit 1
	fi
	if [ "$(date +%s)" -ge "$end" ]; then echo "await: no $what in time" >&2; exit 1; fi
	sleep 0.1
done
`

func versionsOf(suite, root string) (string, error) {
	var lines strings.Builder
	for _, p := range programs {
		if p.suite != suite {
			continue
		}
		name := p.packages[0]
		version, err := versionOf(root, name)
		if err != nil {
			return "", fmt.Errorf("find the version of package %s: %w", name, err)
		}
		fmt.Fprintf(&lines, "%s %s\n", name, version)
	}
	return lines.String(), nil
}

var changelogLine = regexp.MustCompile(`^\S+ \((\S+)\)`)

// versionOf reads the first line of a package's changelog. A package that was only rebuilt has a changelog for the
// architecture.
func versionOf(root, name string) (string, error) {
	doc := filepath.Join(root, "usr/share/doc", name)
	var errs []error
	for _, file := range []string{"changelog.Debian." + runtime.GOARCH + ".gz", "changelog.Debian.gz", "changelog.gz"} {
		line, err := firstLine(filepath.Join(doc, file))
		if found := changelogLine.FindStringSubmatch(line); found != nil {
			return found[1], nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func firstLine(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return bufio.NewReader(unzipped).ReadString('\n')
}

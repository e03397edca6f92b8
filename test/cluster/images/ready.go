// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// The names of the ready images.
const (
	PauseName   = "fsuser.test/pause:1"
	BusyboxName = "fsuser.test/busybox:1"
)

// Pause makes the image of the process that holds a pod's namespaces, in the folder dir, and returns the path of its
// tar.
func Pause(ctx context.Context, dir string) (string, error) {
	work, err := os.MkdirTemp(dir, ".pause-")
	if err != nil {
		return "", fmt.Errorf("make image of pause: %w", err)
	}
	defer os.RemoveAll(work)
	binary := filepath.Join(work, "pause")
	source, err := tools.Tool{Dir: filepath.Join("images", "pause")}.ModuleDir()
	if err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, "go", "build", "-C", source, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile pause: %w\n%s", err, output)
	}
	path := filepath.Join(dir, "pause.tar")
	return path, Build(path, Image{
		Name:       PauseName,
		Files:      []File{{Path: "/pause", Source: binary, Mode: 0o755}},
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
	})
}

// Busybox makes an image with a shell and the usual commands, in the folder, and returns the path of its tar. Progress
// has a line if busybox has to be installed.
func Busybox(ctx context.Context, dir string, progress io.Writer) (string, error) {
	files, err := BusyboxFiles(ctx, progress)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "busybox.tar")
	return path, Build(path, Image{Name: BusyboxName, Files: files, Cmd: []string{"/bin/sh"}})
}

// BusyboxFiles returns a shell and the usual commands with their libraries, for an image that also has other programs.
// If busybox has to be installed, progress receives a line.
func BusyboxFiles(ctx context.Context, progress io.Writer) ([]File, error) {
	busybox, err := Program(ctx, progress, "busybox", "busybox-static")
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, busybox.Source, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the commands of busybox: %w", err)
	}
	files, err := WithLibraries(busybox)
	if err != nil {
		return nil, err
	}
	for command := range strings.Lines(string(list)) {
		if command = strings.TrimSpace(command); command != "busybox" {
			files = append(files, File{Path: "/bin/" + command, Symlink: "busybox"})
		}
	}
	return append(files,
		File{Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777},
		File{Path: "/root", Mode: os.ModeDir | 0o700},
		File{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		File{Path: "/etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\n")},
	), nil
}

// Program returns the file /bin/NAME of an image: a program of this machine, without its libraries. If the machine does
// not have the program, Program installs the Debian package, and progress receives a line.
func Program(ctx context.Context, progress io.Writer, name, debianPackage string) (File, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		if err := apt.Install(ctx, progress, debianPackage); err != nil {
			return File{}, err
		}
		path, err = exec.LookPath(name)
	}
	if err != nil {
		return File{}, fmt.Errorf("find %s: %w", name, err)
	}
	return File{Path: "/bin/" + name, Source: path, Mode: 0o755}, nil
}

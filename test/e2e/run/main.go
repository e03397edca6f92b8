// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command run runs the end-to-end tests of package e2e: it builds the driver and its image, starts a cluster, runs the
// tests, prints their results, and ends the cluster, also after a failure or Ctrl-C. Package e2e describes how to
// choose another version of Kubernetes and another kind of access, and how to use an existing cluster.
//
// With -versions the command runs the tests with each version and each kind of access, and the upgrade test, and writes
// docs/kubernetes-versions.md. The results of the tests that pass stay in the cache folder, so that an interrupted
// command goes on where it ended; `make versions` begins anew.
//
// With -pages the command runs the commands of docs/platforms.md in clusters that are set up like the platforms.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/setup"
)

const (
	driverImage = "fsuser.test/fsuser-csi:e2e"
	podImage    = "fsuser.test/pod:1"
	module      = "github.com/fsuser-csi/fsuser-csi"
)

type options struct {
	tests, save, runDir string
	archive             string
	nodes               int
	keep                bool
	versions, pages     bool
}

func main() {
	var o options
	flag.StringVar(&o.tests, "run", "TestE2E", "run only the tests that match this `pattern`, as with go test -run")
	flag.StringVar(&o.save, "save", "", "write tars of the images to this `folder`, and do nothing else")
	flag.StringVar(&o.archive, "archive", "",
		"test the driver's image in this `file`, an OCI image layout (make release), instead of building it")
	flag.StringVar(&o.runDir, "cluster", "", "`folder` of the cluster (default: e2e in the cache folder)")
	flag.IntVar(&o.nodes, "nodes", 1,
		"`number` of nodes of the cluster; with more than one the tests of several nodes run, too")
	flag.BoolVar(&o.keep, "keep", false, "use the cluster that runs in the folder, or start it, and leave it running")
	flag.BoolVar(&o.versions, "versions", false,
		"run the tests with each version of Kubernetes and each kind of access, as far as they are not done, and write "+page)
	flag.BoolVar(&o.pages, "pages", false,
		"run the commands of docs/platforms.md, in a cluster like each platform or like the one that PLATFORM names, and "+
			"those of deploy/README.md for the oldest Kubernetes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := o.run
	switch {
	case o.versions:
		do = o.runVersions
	case o.pages:
		do = o.runPages
	}
	if err := do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	if o.save != "" {
		_, _, err := o.images(ctx, o.save)
		return err
	}
	if os.Getenv("KUBECONFIG") != "" && os.Getenv("IMAGE") != "" {
		if os.Getenv("POD_IMAGE") == "" {
			return errors.New("set POD_IMAGE, too: the image of the tests' pods; -save writes a tar of the image")
		}
		_, err := test(ctx, o.tests, os.Environ())
		return err
	}
	version, err := tools.FromEnvironment()
	if err != nil {
		return err
	}
	_, err = o.runInCluster(ctx, cluster.Options{Kubernetes: version})
	return err
}

// runInCluster runs the tests in a cluster of this kind, with more environment variables.
func (o options) runInCluster(ctx context.Context, kind cluster.Options, env ...string) (_ results, err error) {
	begin := time.Now()
	cache, err := tools.Cache()
	if err != nil {
		return nil, err
	}
	if o.runDir == "" {
		o.runDir = filepath.Join(cache, "e2e")
	}
	dir, err := os.MkdirTemp("", "fsuser-e2e-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	image, tars, err := o.images(ctx, dir)
	if err != nil {
		return nil, err
	}
	kind.RunDir, kind.Nodes = o.runDir, o.nodes
	c, end, err := setup.Cluster(ctx, kind, o.keep, tars...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	fmt.Printf("cluster of Kubernetes %s with images after %.1f s\n", kind.Kubernetes.Version, time.Since(begin).Seconds())
	// With CLUSTER_DIR the tests own the cluster: they kill its kubelet, too.
	return test(ctx, o.tests, append(append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "IMAGE="+image,
		"POD_IMAGE="+podImage,
		"CLUSTER_DIR="+c.RunDir(), "PATH="+c.Bin()+string(filepath.ListSeparator)+os.Getenv("PATH")), env...))
}

// images returns the name of the driver's image, and archives of this image and of the image of the tests' pods. It
// builds an image that is not in o.archive, in dir.
func (o options) images(ctx context.Context, dir string) (driver string, archives []string, err error) {
	driver, archive := driverImage, o.archive
	if archive != "" {
		driver, err = setup.ImageName(archive)
	} else {
		archive, err = setup.DriverImage(ctx, dir, driver)
	}
	if err != nil {
		return "", nil, err
	}
	pods, err := buildPodImage(ctx, dir)
	return driver, []string{archive, pods}, err
}

// buildPodImage builds the program of the tests' pods, and writes an archive of its image to dir.
func buildPodImage(ctx context.Context, dir string) (archive string, err error) {
	pod, archive := filepath.Join(dir, "pod"), filepath.Join(dir, "pod.tar")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", pod, module+"/test/e2e/pod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program of the tests' pods: %w\n%s", err, out)
	}
	files, err := podFiles(ctx, pod)
	if err != nil {
		return "", err
	}
	return archive, images.Build(archive, images.Image{Name: podImage, Files: files, Cmd: []string{"/pod"}})
}

// podFiles are those of the image of the tests' pods: a shell, inotifywait, the program of the tests' pods, also by the
// name that the documents use, and files of an application.
func podFiles(ctx context.Context, pod string) ([]images.File, error) {
	shell, err := images.BusyboxFiles(ctx, os.Stdout)
	if err != nil {
		return nil, err
	}
	inotifywait, err := images.Program(ctx, os.Stdout, "inotifywait", "inotify-tools")
	if err != nil {
		return nil, err
	}
	return images.WithLibraries(append(shell,
		inotifywait,
		images.File{Path: "/pod", Source: pod, Mode: 0o755},
		images.File{Path: "/bin/app", Symlink: "/pod"},
		images.File{Path: "/etc/app/app.conf", Content: []byte("of the image"), Mode: 0o644},
		images.File{Path: "/etc/app/key", Content: []byte("of the image"), Mode: 0o644},
	)...)
}

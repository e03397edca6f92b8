// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command run shows the gallery: it starts a cluster with the driver of this tree, runs the test, and leaves nothing.
//
//	go run ./test/gallery/run [-keep] [arguments of go test]
//	go run ./test/gallery/run -image    # for a cluster of one's own
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
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/gallery"
)

// driverImage is that of the manifests.
const driverImage = "fsuser-csi/fsuser-csi:0.1.0"

const (
	upTimeout      = 45 * time.Minute // with an empty cache
	installTimeout = 2 * time.Minute
	downTimeout    = 2 * time.Minute
)

func main() {
	keep := flag.Bool("keep", false, "leave the cluster running, for the next run; fsuser-cluster -run .cache/gallery-cluster down ends it")
	imageOnly := flag.Bool("image", false, "make the image of the programs, print the path of its tar, and do nothing else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	show := func() error { return run(ctx, *keep, flag.Args()) }
	if *imageOnly {
		show = func() error { return printImage(ctx) }
	}
	if err := show(); err != nil {
		fmt.Fprintln(os.Stderr, "gallery:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool, testArgs []string) (err error) {
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	// Before the cluster: it needs the processors, too.
	image, err := gallery.Image(ctx, cache)
	if err != nil {
		return err
	}
	driver := filepath.Join(cache, "gallery", "driver.tar")
	if err := buildDriver(ctx, repository, driver); err != nil {
		return err
	}
	c, err := upOrOpen(ctx, filepath.Join(cache, "gallery-cluster"), keep)
	if err != nil {
		return err
	}
	if !keep {
		defer func() {
			// Also when the context has ended.
			down, cancel := context.WithTimeout(context.Background(), downTimeout)
			defer cancel()
			err = errors.Join(err, c.Down(down))
		}()
	}
	if err := install(ctx, c, repository, driver, image); err != nil {
		return err
	}
	test := command(ctx, repository, "go", append([]string{"test", "-tags", "e2e", "-count=1", "-timeout=15m", "-parallel=6", "./test/gallery"}, testArgs...)...)
	test.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return test.Run()
}

// install imports the images and installs the driver; one from an earlier run is started anew.
func install(ctx context.Context, c *cluster.Cluster, repository string, tars ...string) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	for _, tar := range tars {
		if err := c.Import(ctx, tar); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(repository, "deploy", "fsuser-csi.yaml")},
		{"-n", "fsuser-csi", "delete", "pods", "--all"},
		{"-n", "fsuser-csi", "rollout", "status", "daemonset/fsuser-csi", "--timeout=60s"},
	} {
		if _, err := c.Run(ctx, "kubectl", args...); err != nil {
			return fmt.Errorf("install the driver: %w", err)
		}
	}
	return nil
}

// printImage makes the image and tells where it is.
func printImage(ctx context.Context) error {
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	tar, err := gallery.Image(ctx, cache)
	if err != nil {
		return err
	}
	fmt.Println(tar)
	return nil
}

// upOrOpen starts the cluster, or takes the one that an earlier run has kept.
func upOrOpen(ctx context.Context, runDir string, keep bool) (*cluster.Cluster, error) {
	if c, err := cluster.Open(runDir); err == nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	return cluster.Up(ctx, cluster.Options{RunDir: runDir, Detach: keep, Progress: os.Stdout})
}

func buildDriver(ctx context.Context, repository, tar string) error {
	binary := filepath.Join(filepath.Dir(tar), "fsuser-csi")
	build := command(ctx, repository, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w -X main.version=gallery", "-o", binary, "./cmd/fsuser-csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the driver: %w", err)
	}
	if err := command(ctx, repository, "go", "run", "./deploy/image", "-o", tar, "-tag", driverImage, binary).Run(); err != nil {
		return fmt.Errorf("pack the driver: %w", err)
	}
	return nil
}

// command runs in the repository, and is asked to end before it is killed: a test then cleans up.
func command(ctx context.Context, repository, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = repository
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

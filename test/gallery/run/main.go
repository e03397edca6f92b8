// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command run runs the gallery: it starts a cluster with the driver of this tree, runs the test, and leaves nothing.
//
//	go run ./test/gallery/run [-keep] [arguments of go test]
//	go run ./test/gallery/run -image      # make the images, for another cluster
//	go run ./test/gallery/run -examples   # write the programs' files of examples/
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
	"strings"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/gallery"
	"github.com/fsuser-csi/fsuser-csi/test/setup"
)

const driverImage = "fsuser.test/fsuser-csi:gallery"

func main() {
	keep := flag.Bool("keep", false,
		"leave the cluster running, for the next run; fsuser-cluster -run .cache/gallery-cluster down ends it")
	imageOnly := flag.Bool("image", false,
		"make the images of the programs, print the paths of their tars, and do nothing else")
	examples := flag.Bool("examples", false, "write the programs' files of examples/, and do nothing else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := func() error { return run(ctx, *keep, flag.Args()) }
	switch {
	case *imageOnly:
		do = func() error { return printImages(ctx) }
	case *examples:
		do = writeExamples
	}
	if err := do(); err != nil {
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
	// The images are made before the cluster starts, because the cluster takes CPU time, too.
	tars, err := gallery.Images(ctx, cache)
	if err != nil {
		return err
	}
	driver, err := setup.DriverImage(ctx, filepath.Join(cache, "gallery"), driverImage)
	if err != nil {
		return err
	}
	c, end, err := setup.Cluster(ctx, cluster.Options{RunDir: filepath.Join(cache, "gallery-cluster")}, keep,
		append(tars, driver)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := setup.Install(ctx, c, driverImage, "fsuser-csi.yaml"); err != nil {
		return err
	}
	test := command(ctx, repository, "go", append([]string{"test", "-tags", "e2e", "-count=1", "-timeout=15m",
		"-parallel=6", "./test/gallery"}, testArgs...)...)
	test.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return test.Run()
}

func writeExamples() error {
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	return gallery.WriteExamples(filepath.Join(repository, "examples"))
}

// printImages makes the images and prints their paths.
func printImages(ctx context.Context) error {
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	tars, err := gallery.Images(ctx, cache)
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(tars, "\n"))
	return nil
}

// command returns a command in the repository. The command gets a signal before it is killed, so that a test cleans up.
func command(ctx context.Context, repository, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = repository
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command run runs the end-to-end tests of package e2e: it builds the driver and its image, starts a cluster, runs the tests,
// prints their results, and ends the cluster, also after a failure or Ctrl-C. Package e2e describes how to use an existing
// cluster.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
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

const (
	testTimeout = 25 * time.Minute
	endTimeout  = 2 * time.Minute // of tests that are interrupted
)

type options struct {
	tests, save, runDir string
	keep                bool
}

func main() {
	var o options
	flag.StringVar(&o.tests, "run", "", "run only the tests that match this `pattern`, as with go test -run")
	flag.StringVar(&o.save, "save", "", "write tars of the images to this `folder`, and do nothing else")
	flag.StringVar(&o.runDir, "cluster", "", "`folder` of the cluster (default: e2e in the cache folder)")
	flag.BoolVar(&o.keep, "keep", false, "use the cluster that runs in the folder, or start it, and leave it running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) (err error) {
	begin := time.Now()
	if o.save != "" {
		_, err := buildImages(ctx, o.save)
		return err
	}
	if os.Getenv("KUBECONFIG") != "" && os.Getenv("IMAGE") != "" {
		if os.Getenv("POD_IMAGE") == "" {
			return errors.New("set POD_IMAGE, too: the image of the tests' pods; -save writes a tar of the image")
		}
		return test(ctx, o.tests, os.Environ())
	}
	version, err := tools.FromEnvironment()
	if err != nil {
		return err
	}
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	if o.runDir == "" {
		o.runDir = filepath.Join(cache, "e2e")
	}
	dir, err := os.MkdirTemp("", "fsuser-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tars, err := buildImages(ctx, dir)
	if err != nil {
		return err
	}
	c, end, err := setup.Cluster(ctx, cluster.Options{RunDir: o.runDir, Kubernetes: version}, o.keep, tars...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	fmt.Printf("cluster with images after %.1f s\n", time.Since(begin).Seconds())
	// With CLUSTER_DIR the tests own the cluster: they kill its kubelet, too.
	return test(ctx, o.tests, append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "IMAGE="+driverImage, "POD_IMAGE="+podImage,
		"CLUSTER_DIR="+c.RunDir(), "PATH="+c.Bin()+string(filepath.ListSeparator)+os.Getenv("PATH")))
}

// buildImages builds the driver and the program of the tests' pods, and writes their images to dir.
func buildImages(ctx context.Context, dir string) (tars []string, err error) {
	driverTar, err := setup.DriverImage(ctx, dir, driverImage)
	if err != nil {
		return nil, err
	}
	pod, podTar := filepath.Join(dir, "pod"), filepath.Join(dir, "pod.tar")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", pod, module+"/test/e2e/pod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the program of the tests' pods: %w\n%s", err, out)
	}
	shell, err := images.BusyboxFiles(ctx, os.Stdout)
	if err != nil {
		return nil, err
	}
	err = images.Build(podTar, images.Image{
		Name:  podImage,
		Files: append(shell, images.File{Path: "/pod", Source: pod, Mode: 0o755}),
		Cmd:   []string{"/pod"},
	})
	return []string{driverTar, podTar}, err
}

// event is a line of test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// test runs the tests, prints their output, and then a table of their results.
func test(ctx context.Context, pattern string, env []string) error {
	dir, err := os.MkdirTemp("", "fsuser-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "e2e.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "e2e", "-o", binary, module+"/test/e2e").CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests: %w\n%s", err, out)
	}
	source, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", module+"/test/e2e").Output()
	if err != nil {
		return fmt.Errorf("find the tests: %w", err)
	}
	begin := time.Now()
	// The tests have to clean up after an interrupt. `go test` would not pass the interrupt on to them.
	tests := exec.CommandContext(ctx, binary, "-test.v=test2json", "-test.parallel=8", "-test.timeout="+testTimeout.String(), "-test.run="+pattern)
	tests.Dir, tests.Env, tests.Stderr = strings.TrimSpace(string(source)), env, os.Stderr
	tests.Cancel = func() error { return tests.Process.Signal(os.Interrupt) }
	tests.WaitDelay = endTimeout
	toJSON := exec.Command("go", "tool", "test2json", "-t")
	if toJSON.Stdin, err = tests.StdoutPipe(); err != nil {
		return err
	}
	// In a process group of its own: Ctrl-C must not end test2json before its input ends.
	toJSON.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := toJSON.StdoutPipe()
	if err != nil {
		return err
	}
	if err := errors.Join(tests.Start(), toJSON.Start()); err != nil {
		return err
	}
	results, readErr := follow(out)
	err = errors.Join(toJSON.Wait(), tests.Wait())
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	counts := map[string]int{}
	for _, r := range results {
		counts[r.Action]++
		fmt.Fprintf(w, "%s\t%6.1f s\t%s\n", r.Action, r.Elapsed, strings.ReplaceAll(r.Test, "_", " "))
	}
	err = errors.Join(err, readErr, w.Flush())
	fmt.Printf("%d passed, %d failed, %d skipped in %.0f s\n", counts["pass"], counts["fail"], counts["skip"], time.Since(begin).Seconds())
	return err
}

// follow prints the output of the tests, and returns the result of each.
func follow(r io.Reader) (results []event, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		switch e.Action {
		case "output":
			if !strings.HasPrefix(e.Output, "=== ") {
				fmt.Print(e.Output)
			}
		case "pass", "fail", "skip":
			if e.Test != "" {
				results = append(results, e)
			}
		}
	}
	return results, lines.Err()
}

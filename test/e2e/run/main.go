// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command run runs the end-to-end tests of package e2e: it builds the driver and its image, starts a cluster, runs the tests, prints what
// passed, and takes everything down, also after a failure or Ctrl-C. See package e2e for a cluster that is there already.
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
)

const (
	driverImage = "fsuser.test/fsuser-csi:e2e"
	podImage    = "fsuser.test/pod:1"
	module      = "github.com/fsuser-csi/fsuser-csi"
)

const (
	upTimeout   = 45 * time.Minute // with an empty cache
	testTimeout = 25 * time.Minute
	downTimeout = 2 * time.Minute
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
			return errors.New("set POD_IMAGE, too: the image of the tests' pods, of which -save writes a tar")
		}
		return test(ctx, o.tests, os.Environ())
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
	c, err := o.up(ctx)
	if err != nil {
		return err
	}
	if !o.keep {
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
			defer cancel()
			err = errors.Join(err, c.Down(ctx))
		}()
	}
	for _, tar := range tars {
		if err := c.Import(ctx, tar); err != nil {
			return err
		}
	}
	fmt.Printf("cluster with images after %.1f s\n", time.Since(begin).Seconds())
	// A run folder in the environment tells the tests that the cluster is theirs: they kill its kubelet, too.
	return test(ctx, o.tests, append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "IMAGE="+driverImage, "POD_IMAGE="+podImage,
		"CLUSTER_DIR="+c.RunDir(), "PATH="+c.Bin()+string(filepath.ListSeparator)+os.Getenv("PATH")))
}

func (o options) up(ctx context.Context) (*cluster.Cluster, error) {
	if o.keep {
		if c, err := cluster.Open(o.runDir); err == nil {
			return c, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	return cluster.Up(ctx, cluster.Options{RunDir: o.runDir, Detach: o.keep, Progress: os.Stdout})
}

// buildImages builds the driver and the tests' program, and writes their images to dir.
func buildImages(ctx context.Context, dir string) (tars []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	driver, pod := filepath.Join(dir, "fsuser-csi"), filepath.Join(dir, "pod")
	driverTar, podTar := filepath.Join(dir, "fsuser-csi.tar"), filepath.Join(dir, "pod.tar")
	build := []string{"build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w -X main.version=e2e", "-o"}
	for _, args := range [][]string{
		append(build, driver, module+"/cmd/fsuser-csi"),
		append(build, pod, module+"/test/e2e/pod"),
		{"run", module + "/deploy/image", "-o", driverTar, "-tag", driverImage, driver},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	shell, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	err = images.Build(podTar, images.Image{
		Name: podImage,
		Files: append(shell, images.File{Path: "/pod", Source: pod, Mode: 0o755},
			images.File{Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777}),
		Cmd: []string{"/pod"},
	})
	return []string{driverTar, podTar}, err
}

// busybox is a shell and the commands that the tests use.
func busybox(ctx context.Context) ([]images.File, error) {
	binary, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox, of the Debian package busybox-static: %w", err)
	}
	files, err := images.WithLibraries(images.File{Path: "/bin/busybox", Source: binary, Mode: 0o755})
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, binary, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the commands of busybox: %w", err)
	}
	for command := range strings.FieldsSeq(string(list)) {
		if command != "busybox" {
			files = append(files, images.File{Path: "/bin/" + command, Symlink: "busybox"})
		}
	}
	return files, nil
}

// event is a line of test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// test runs the tests, shows what they print, and at the end a table of all.
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
	// Not by `go test`, which keeps an interrupt to itself: the tests have to clean up.
	tests := exec.CommandContext(ctx, binary, "-test.v=test2json", "-test.parallel=8", "-test.timeout="+testTimeout.String(), "-test.run="+pattern)
	tests.Dir, tests.Env, tests.Stderr = strings.TrimSpace(string(source)), env, os.Stderr
	tests.Cancel = func() error { return tests.Process.Signal(os.Interrupt) }
	tests.WaitDelay = downTimeout
	toJSON := exec.Command("go", "tool", "test2json", "-t")
	if toJSON.Stdin, err = tests.StdoutPipe(); err != nil {
		return err
	}
	// In a group of its own, out of reach of Ctrl-C: it ends with its input.
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

// follow prints what the tests print, and returns how each ended.
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

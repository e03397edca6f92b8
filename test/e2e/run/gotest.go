// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/e2e"
)

const (
	testTimeout = 35 * time.Minute
	endTimeout  = 2 * time.Minute // for interrupted tests
)

// event is a line of test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// results are the events that end the tests. Output is the reason of a skipped test.
type results []event

func (r results) count(action string) int {
	n := 0
	for _, e := range r {
		if e.Action == action {
			n++
		}
	}
	return n
}

// test runs the tests, prints their output, and then a table of their results.
func test(ctx context.Context, pattern string, env []string) (results, error) {
	dir, err := os.MkdirTemp("", "fsuser-e2e-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "e2e.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "e2e", "-o", binary,
		module+"/test/e2e").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tests: %w\n%s", err, out)
	}
	source, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", module+"/test/e2e").Output()
	if err != nil {
		return nil, fmt.Errorf("find the tests: %w", err)
	}
	begin := time.Now()
	// After an interrupt, the tests must clean up. `go test` would not forward the interrupt to them.
	tests := exec.CommandContext(ctx, binary, "-test.v=test2json", "-test.parallel=8",
		"-test.timeout="+testTimeout.String(), "-test.run="+pattern)
	tests.Dir, tests.Env, tests.Stderr = strings.TrimSpace(string(source)), env, os.Stderr
	tests.Cancel = func() error { return tests.Process.Signal(os.Interrupt) }
	tests.WaitDelay = endTimeout
	toJSON := exec.Command("go", "tool", "test2json", "-t")
	if toJSON.Stdin, err = tests.StdoutPipe(); err != nil {
		return nil, err
	}
	// The process group protects test2json from Ctrl-C, which must not end it before its input ends.
	toJSON.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := toJSON.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(tests.Start(), toJSON.Start()); err != nil {
		return nil, err
	}
	all, readErr := follow(out)
	err = errors.Join(toJSON.Wait(), tests.Wait())
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%6.1f s\t%s %s\n", r.Action, r.Elapsed, strings.ReplaceAll(r.Test, "_", " "), r.Output)
	}
	err = errors.Join(err, readErr, w.Flush())
	fmt.Printf("%d passed, %d failed, %d skipped in %.0f s\n", all.count("pass"), all.count("fail"), all.count("skip"),
		time.Since(begin).Seconds())
	return all, err
}

// skipReason matches the reason of a test that was skipped because of the version.
var skipReason = regexp.MustCompile(regexp.QuoteMeta(e2e.NotInVersion) + `.*`)

// follow prints the output of the tests, and returns the result of each.
func follow(r io.Reader) (all results, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	reasons := map[string]string{}
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text())
			continue
		}
		switch e.Action {
		case "output":
			if reason := skipReason.FindString(e.Output); reason != "" {
				reasons[e.Test] = reason
			}
			if !strings.HasPrefix(e.Output, "=== ") {
				fmt.Print(e.Output)
			}
		case "pass", "fail", "skip":
			if e.Test != "" {
				if e.Action == "skip" {
					e.Output = reasons[e.Test]
				}
				all = append(all, e)
			}
		}
	}
	return all, lines.Err()
}

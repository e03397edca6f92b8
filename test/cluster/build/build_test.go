// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// testTool returns the command in a folder of testdata as a tool.
func testTool(t *testing.T, name string) (tool tools.Tool, binary string) {
	t.Helper()
	tool = tools.Tool{
		Name: name, Version: "v1", Cost: "a second",
		Dir: "build/testdata/" + name, Package: name,
		LDFlags: []string{"-X main.version=v1"},
	}
	binary, err := tool.Binary()
	if err != nil {
		t.Fatal(err)
	}
	return tool, binary
}

func TestBuild(t *testing.T) {
	t.Setenv("FSUSER_CACHE", t.TempDir())
	tool, binary := testTool(t, "hello")

	// Several builds start at the same time, and only one of them compiles.
	const builds = 3
	var progress [builds]bytes.Buffer
	var errs [builds]error
	var wait sync.WaitGroup
	for i := range builds - 1 {
		wait.Go(func() { errs[i] = build(t.Context(), tool, &progress[i]) })
	}
	wait.Wait()
	errs[builds-1] = build(t.Context(), tool, &progress[builds-1])

	compiled := 0
	for i := range builds {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		line := progress[i].String()
		if !strings.HasPrefix(line, "hello v1: ") || strings.Count(line, "\n") != 1 {
			t.Errorf("progress %q, want one line that names the tool", line)
		}
		if strings.Contains(line, "compiling") {
			compiled++
		} else if !strings.HasSuffix(line, "there already\n") {
			t.Errorf("progress %q, want that the binary was there", line)
		}
	}
	if compiled != 1 {
		t.Errorf("%d of %d builds compiled, want 1", compiled, builds)
	}
	if output, err := exec.Command(binary).CombinedOutput(); err != nil || string(output) != "v1\n" {
		t.Errorf("run the binary: %q, %v, want the version from the linker flags", output, err)
	}
	onlyHas(t, filepath.Dir(binary), ".lock", "hello")
}

func TestFailedBuildLeavesNoBinary(t *testing.T) {
	t.Setenv("FSUSER_CACHE", t.TempDir())
	tool, binary := testTool(t, "broken")
	var progress bytes.Buffer
	err := build(t.Context(), tool, &progress)
	if err == nil || !strings.Contains(err.Error(), "undefined: missing") {
		t.Errorf("build: error %v, want the compiler's", err)
	}
	if !strings.HasSuffix(progress.String(), "failed\n") {
		t.Errorf("progress %q, want that it failed", progress.String())
	}
	onlyHas(t, filepath.Dir(binary), ".lock")
}

func TestNames(t *testing.T) {
	t.Setenv("FSUSER_CACHE", t.TempDir())
	for _, names := range [][]string{nil, {"etcd", "no-such-tool"}} {
		err := run(t.Context(), names)
		if err == nil || !strings.Contains(err.Error(), "kube-apiserver, etcd") {
			t.Errorf("build %q: error %v, want one that lists the tools, before any is built", names, err)
		}
	}
}

func onlyHas(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the cache folder has %q, want %q", got, want)
	}
}

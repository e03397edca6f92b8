// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// build makes sure that the tool's binary exists and prints one line about it.
func build(ctx context.Context, t tools.Tool, progress io.Writer) error {
	binary, err := t.Binary()
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "%s %s: ", t.Name, t.Version)
	if exists, err := isBuilt(binary, progress); exists || err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return fmt.Errorf("make the cache folder of %s: %w", t.Name, err)
	}
	unlock, err := lock(ctx, filepath.Join(filepath.Dir(binary), ".lock"), progress)
	if err != nil {
		return fmt.Errorf("lock the build of %s: %w", t.Name, err)
	}
	defer unlock()
	// Another process may have built the binary while this one waited for the lock.
	if exists, err := isBuilt(binary, progress); exists || err != nil {
		return err
	}

	fmt.Fprintf(progress, "compiling it from source, the first time %s ... ", t.Cost)
	start := time.Now()
	if err := compile(ctx, t, binary); err != nil {
		fmt.Fprintln(progress, "failed")
		return err
	}
	info, err := os.Stat(binary)
	if err != nil {
		return fmt.Errorf("look at the binary of %s: %w", t.Name, err)
	}
	fmt.Fprintf(progress, "%s, %d MB\n", time.Since(start).Round(100*time.Millisecond), info.Size()/1e6)
	return nil
}

func isBuilt(binary string, progress io.Writer) (bool, error) {
	if _, err := os.Stat(binary); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for the binary: %w", err)
	}
	fmt.Fprintln(progress, "there already")
	return true, nil
}

// compile builds into a temporary file and renames it, so that an interrupted build leaves no partial binary. The
// caller holds the tool's lock, so the temporary name is always the same and a leftover is overwritten.
func compile(ctx context.Context, t tools.Tool, binary string) error {
	module, err := t.ModuleDir()
	if err != nil {
		return err
	}
	partial := filepath.Join(filepath.Dir(binary), ".partial")
	// go build refuses to overwrite a file that is no object file.
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("remove the rest of an earlier build of %s: %w", t.Name, err)
	}
	defer os.Remove(partial)

	cmd := exec.CommandContext(ctx, "go", goArgs(t, module, partial)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgoEnabled(t), "GOWORK=off")
	// The signal lets go clean up its working directory. The wait for that is bounded.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile %s with %s: %w\n%s", t.Name, cmd, err, output)
	}
	if err := os.Rename(partial, binary); err != nil {
		return fmt.Errorf("put the binary of %s in place: %w", t.Name, err)
	}
	return nil
}

// goArgs returns the arguments of the go command. They override the -mod of GOFLAGS in the environment with
// -mod=readonly, because go.mod and go.sum of the tool's module have been reviewed.
func goArgs(t tools.Tool, module, output string) []string {
	args := []string{"build", "-C", module}
	if t.Tests {
		args = []string{"test", "-C", module, "-c"}
	}
	args = append(args, "-mod=readonly", "-trimpath", "-ldflags",
		strings.Join(append([]string{"-s", "-w"}, t.LDFlags...), " "))
	if len(t.Tags) > 0 {
		args = append(args, "-tags", strings.Join(t.Tags, ","))
	}
	return append(args, "-o", output, t.Package)
}

func cgoEnabled(t tools.Tool) string {
	if t.Cgo {
		return "1"
	}
	return "0"
}

// SPDX-License-Identifier: Apache-2.0

//go:build cluster && linux

package proof

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// TestEnd kills each of the cluster's own processes, while a pod with a mount is running.
func TestEnd(t *testing.T) {
	for _, word := range []string{"keep", "init", "node"} {
		t.Run(word+" is killed", func(t *testing.T) {
			before := machine(t)
			c := up(t, "end")
			runPod(t, c, "simple", simplePod)
			if err := syscall.Kill(findProcess(t, c.RunDir(), word), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waitNothingLeft(t, c.RunDir(), before)
			if err := c.Down(eachContext(t)); err != nil { // waits for the last process
				t.Fatal(err)
			}
			if _, err := cluster.Open(c.RunDir()); !errors.Is(err, supervisor.ErrNotRunning) {
				t.Errorf("open the cluster: error %v, want %v", err, supervisor.ErrNotRunning)
			}
		})
	}
	t.Run("all are killed at once, and down cleans up", func(t *testing.T) {
		before := machine(t)
		c := up(t, "end")
		runPod(t, c, "simple", simplePod)
		keep, node := findProcess(t, c.RunDir(), "keep"), findProcess(t, c.RunDir(), "init")
		// A stopped process cannot react to the end of another one.
		for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
			for _, pid := range []int{keep, node} {
				if err := syscall.Kill(pid, signal); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.Down(eachContext(t)); err != nil {
			t.Fatal(err)
		}
		waitNothingLeft(t, c.RunDir(), before)
	})
}

// TestInterruptedStart ends the context of Up after its first message.
func TestInterruptedStart(t *testing.T) {
	before := machine(t)
	cache, err := tools.Cache()
	if err != nil {
		t.Fatal(err)
	}
	runDir := filepath.Join(cache, "proof", "interrupted")
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = cluster.Up(ctx, cluster.Options{RunDir: runDir, Progress: writer(func(line string) {
		if strings.HasPrefix(line, "containerd, ") {
			cancel(interrupted)
		}
	})})
	if !errors.Is(err, interrupted) {
		t.Errorf("Up: error %v, want %v", err, interrupted)
	}
	if left := leftOf(t, runDir, before); left != "" {
		t.Error(left)
	}
	_ = os.RemoveAll(runDir)
}

type writer func(string)

func (w writer) Write(p []byte) (int, error) {
	w(string(p))
	return len(p), nil
}

// findProcess returns the process id of one of the cluster's own processes.
func findProcess(t *testing.T, runDir, word string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		arguments, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // The process may have ended.
		fields := strings.Split(string(arguments), "\x00")
		if len(fields) > 2 && fields[1] == word && strings.Contains(fields[2], `"`+runDir+`"`) {
			return number(t, filepath.Base(dir))
		}
	}
	t.Fatalf("there is no process %s of %s", word, runDir)
	return 0
}

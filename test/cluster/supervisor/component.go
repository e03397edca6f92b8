// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// A component that ends is started again after restartDelay. If it ends maxShortRuns times in a row within shortRun,
// the cluster fails.
const (
	restartDelay = 500 * time.Millisecond
	shortRun     = 10 * time.Second
	maxShortRuns = 5
)

// component is a program of the cluster that is restarted after its end.
type component struct {
	name string
	path string
	args []string
	log  *os.File
	pid  string // the path of its file with the process id
	env  []string
}

// run starts a component, and starts it again after each end.
func (n *node) run(name string, args ...string) error {
	path, err := tools.Path(n.spec.Kubernetes, name)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(n.paths.Logs(), name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	c := component{
		name: name, path: path, args: args, log: log, pid: filepath.Join(n.paths.PIDs(), name), env: Environment(n.paths),
	}
	cmd, err := c.start()
	if err != nil {
		return err
	}
	go func() { n.fail(c.keepRunning(n.life, cmd)) }()
	return nil
}

func (c component) start() (*exec.Cmd, error) {
	cmd := exec.Command(c.path, c.args...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.Env = c.env
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	if err := os.WriteFile(c.pid, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("write the process id of %s: %w", c.name, err)
	}
	return cmd, nil
}

// keepRunning restarts the component until that fails.
func (c component) keepRunning(ctx context.Context, cmd *exec.Cmd) error {
	for short := 0; ; {
		begin := time.Now()
		err := cmd.Wait()
		fmt.Fprintf(c.log, "--- %s ended after %s: %v\n", c.name, time.Since(begin).Round(time.Millisecond), err)
		if time.Since(begin) > shortRun {
			short = 0
		}
		if short++; short >= maxShortRuns {
			return fmt.Errorf("%s ended %d times in a row soon after its start, the last time with: %w; see %s", c.name, short,
				err, c.log.Name())
		}
		select {
		case <-time.After(restartDelay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if cmd, err = c.start(); err != nil {
			return err
		}
	}
}

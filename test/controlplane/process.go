// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// process is a started child process. Its methods are safe for concurrent use.
type process struct {
	name   string
	cmd    *exec.Cmd
	tail   *tail
	exited chan struct{} // closed when the child was waited for
}

// startProcess starts a program whose output goes to the log.
func (cp *ControlPlane) startProcess(name, path string, args ...string) (*process, error) {
	log, closeLog, err := cp.openLog(name)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, tail: &tail{}, exited: make(chan struct{})}
	output := io.MultiWriter(p.tail, log)
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = cp.dir
	p.cmd.Env = []string{} // etcd would read options from variables with the prefix ETCD_.
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.SysProcAttr = childAttributes()
	if err := cp.keeper.do(p.cmd.Start); err != nil {
		closeLog()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.exited)
		defer closeLog()
		_ = p.cmd.Wait() // The state of the process has the result.
	}()
	return p, nil
}

func (cp *ControlPlane) openLog(name string) (io.Writer, func(), error) {
	if cp.log != nil {
		return cp.log, func() {}, nil
	}
	path := filepath.Join(cp.dir, name+".log")
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	return file, func() { file.Close() }, nil
}

// running reports whether the child is running. For a nil process, it returns false.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// kill kills the child and waits for its end.
func (p *process) kill() { _ = p.killContext(context.Background()) }

func (p *process) killContext(ctx context.Context) error {
	_ = p.cmd.Process.Kill() // This fails only if the child has ended.
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s, process %d: %w", p.name, p.cmd.Process.Pid, context.Cause(ctx))
	}
}

// failure describes the unexpected end of a child.
func (p *process) failure() error {
	<-p.exited
	return fmt.Errorf("%s ended by itself: %s; %s", p.name, p.cmd.ProcessState, p.lastWords())
}

func (p *process) lastWords() string {
	return fmt.Sprintf("the end of its output:\n%s", p.tail)
}

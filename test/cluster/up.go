// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

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
	"sync"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// endTimeout bounds the time that Up waits for the end of a failed cluster.
const endTimeout = time.Minute

// Up starts a cluster and waits until its node is Ready, the namespace `default` has its service account, and services
// are routed. The first time, it compiles all programs. ctx bounds only the start. If ctx ends before, nothing is left.
// A running cluster in the folder is an error.
func Up(ctx context.Context, o Options) (_ *Cluster, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start cluster: %w", err)
		}
	}()
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("it needs root")
	}
	if _, err := supervisor.ReadState(o.RunDir); !errors.Is(err, supervisor.ErrNotRunning) {
		if err == nil {
			err = fmt.Errorf("one runs in %s already: end it with: make cluster-down", o.RunDir)
		}
		return nil, err
	}
	spec, err := prepare(ctx, &o)
	if err != nil {
		return nil, err
	}
	c, err := start(ctx, o, spec)
	if err != nil {
		return nil, err
	}
	if err := c.bootFurther(ctx, o.Progress); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		return nil, errors.Join(err, c.Down(ctx))
	}
	return c, nil
}

// bootFurther boots all nodes except the first one, which is Ready.
func (c *Cluster) bootFurther(ctx context.Context, progress io.Writer) error {
	nodes, err := c.Nodes()
	if err != nil {
		return err
	}
	begin := time.Now()
	failed := make([]error, len(nodes))
	var group sync.WaitGroup
	for i, node := range nodes[1:] {
		group.Go(func() { failed[i] = node.Boot(ctx) })
	}
	group.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if len(nodes) > 1 {
		fmt.Fprintf(progress, "%d further nodes are Ready (%.1f s)\n", len(nodes)-1, time.Since(begin).Seconds())
	}
	return nil
}

// prepare makes the programs and images.
func prepare(ctx context.Context, o *Options) (supervisor.Spec, error) {
	cache, err := tools.Cache()
	if err != nil {
		return supervisor.Spec{}, err
	}
	if err := installPackages(ctx, o.Progress); err != nil {
		return supervisor.Spec{}, err
	}
	if err := buildTools(ctx, o.Kubernetes, o.Progress); err != nil {
		return supervisor.Spec{}, err
	}
	if o.Program == "" {
		if o.Program, err = buildProgram(ctx, cache); err != nil {
			return supervisor.Spec{}, err
		}
	}
	images, err := readyImages(ctx, cache, o.Progress)
	if err != nil {
		return supervisor.Spec{}, err
	}
	return supervisor.Spec{
		RunDir:        o.RunDir,
		CacheDir:      cache,
		Images:        append(images, o.Images...),
		Kubernetes:    o.Kubernetes,
		APIServerArgs: o.APIServerArgs,
		KubeletArgs:   o.KubeletArgs,
		Nodes:         supervisor.Number(o.Nodes),
	}, nil
}

// start starts the keep process and follows it until the cluster is ready.
func start(ctx context.Context, o Options, spec supervisor.Spec) (*Cluster, error) {
	paths := supervisor.Paths(o.RunDir)
	// The logs of an ended cluster stay until the next start.
	if err := os.RemoveAll(paths.Logs()); err != nil {
		return nil, fmt.Errorf("remove old logs: %w", err)
	}
	if err := os.MkdirAll(paths.Logs(), 0o755); err != nil {
		return nil, fmt.Errorf("make run folder: %w", err)
	}
	log, err := os.Create(filepath.Join(paths.Logs(), "supervisor.log"))
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	progress, progressWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer progress.Close()
	defer progressWrite.Close()
	aliveRead, alive, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer aliveRead.Close()

	cmd := exec.Command(o.Program, "keep", spec.String())
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "FSUSER_CACHE="+spec.CacheDir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{progressWrite, aliveRead}
	// A Ctrl-C at the terminal ends this process, and the end of this process ends the cluster.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		alive.Close()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	progressWrite.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // Its messages and its log contain the reason of a failure.
	}()

	if err := follow(ctx, progress, o.Progress); err != nil {
		alive.Close() // ends the process
		select {
		case <-ended:
		case <-time.After(endTimeout):
			err = fmt.Errorf("%w; process %d has not ended %s later", err, cmd.Process.Pid, endTimeout)
		}
		return nil, fmt.Errorf("%w; logs are in %s", err, paths.Logs())
	}
	c := &Cluster{runDir: o.RunDir, alive: alive}
	if o.Detach {
		_, err := io.WriteString(alive, supervisor.Detach)
		if err = errors.Join(err, alive.Close()); err != nil {
			return nil, fmt.Errorf("detach from supervisor: %w", err)
		}
		c.alive = nil
	}
	return c, nil
}

// follow copies the steps to progress until the cluster is ready or has failed.
func follow(ctx context.Context, messages *os.File, progress io.Writer) error {
	stop := context.AfterFunc(ctx, func() { _ = messages.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	lines := bufio.NewScanner(messages)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var message supervisor.Message
		if err := json.Unmarshal(lines.Bytes(), &message); err != nil {
			return fmt.Errorf("read the supervisor's progress %q: %w", lines.Text(), err)
		}
		switch {
		case message.Ready:
			return nil
		case message.Error != "":
			return errors.New(message.Error)
		default:
			fmt.Fprintln(progress, message.Step)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errors.New("the supervisor ended without a word"), lines.Err())
}

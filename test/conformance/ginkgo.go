// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

const (
	suiteTimeout     = 45 * time.Minute
	interruptTimeout = 45 * time.Second
)

// programs are the paths of the programs that the tests use.
type programs struct {
	ginkgo, tests, agnhost, kubectl string
}

func findPrograms() (p programs, err error) {
	for name, path := range map[string]*string{"ginkgo": &p.ginkgo, "e2e.test": &p.tests, "agnhost": &p.agnhost} {
		if *path, err = tools.Path(tools.Newest(), name); err != nil {
			return programs{}, err
		}
	}
	kubectl, err := tools.Lookup(tools.Newest(), "kubectl")
	if err != nil {
		return programs{}, err
	}
	p.kubectl, err = kubectl.Binary() // The start of the cluster builds it.
	return p, err
}

// runSpecs runs the specs of all groups, or those whose name matches, and returns their results. A spec that fails is
// no error. The report and the output go into dir.
func runSpecs(ctx context.Context, p programs, c *cluster.Cluster, dir, match string) ([]spec, error) {
	repository, err := tools.Repository()
	if err != nil {
		return nil, err
	}
	focus := match
	if focus == "" {
		var quoted []string
		for _, group := range append(groups(), externalStorage) {
			quoted = append(quoted, regexp.QuoteMeta(group))
		}
		focus = "(" + strings.Join(quoted, "|") + ") "
	}
	report := filepath.Join(dir, "report.json")
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "ginkgo.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Printf("the specs run, which takes some six minutes; output in %s\n", log.Name())
	cmd := exec.CommandContext(ctx, p.ginkgo, "--no-color", "--silence-skips", "--timeout="+suiteTimeout.String(),
		// The specs wait most of the time: eight of them wait for five minutes each.
		"--procs="+strconv.Itoa(5*runtime.NumCPU()),
		"--focus="+focus, "--skip="+notApplicable, "--output-dir="+dir, "--json-report="+filepath.Base(report),
		p.tests, "--", "--provider=local", "--kubeconfig="+c.Kubeconfig(), "--kubectl-path="+p.kubectl,
		"--storage.testdriver="+filepath.Join(repository, testDriver))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	// ginkgo has a process group of its own, so that Ctrl-C reaches it only through the context, and its children can be
	// killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = interruptTimeout
	err = cmd.Run()
	if ctx.Err() != nil {
		if cmd.Process != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // Usually no process is left.
		}
		return nil, context.Cause(ctx)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("run ginkgo: %w", err)
	}
	return readReport(report)
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/e2e"
)

const upgradeTest = "TestUpgrade"

// job is a cluster with the tests that run in it.
type job struct {
	Kubernetes tools.Kubernetes
	Access     string
	Tests      string // a pattern; empty for the default
	Results    results
}

// jobs returns all jobs of `make versions`.
func jobs() ([]job, error) {
	var all []job
	for _, k := range tools.Versions() {
		v, err := version.ParseGeneric(k.Version)
		if err != nil {
			return nil, err
		}
		for _, access := range e2e.Access(v) {
			all = append(all, job{Kubernetes: k, Access: access})
		}
	}
	return append(all, job{Kubernetes: tools.Newest(), Access: "node", Tests: upgradeTest}), nil
}

// command returns the command that runs only this job.
func (j job) command() string {
	c := fmt.Sprintf("make e2e %s=%s ACCESS=%s", tools.KubernetesEnv, j.Kubernetes.Minor(), j.Access)
	if j.Tests != "" {
		c += " E2E=" + j.Tests
	}
	return c
}

// check returns an error unless every test passed, or was skipped for the version.
func (j job) check() error {
	var failed []error
	for _, e := range j.Results {
		if e.Action == "fail" || e.Action == "skip" && e.Output == "" {
			failed = append(failed, fmt.Errorf("%s: %s: %s", j.command(), e.Test, e.Action))
		}
	}
	if j.Results.count("pass") == 0 {
		failed = append(failed, fmt.Errorf("%s: no test passed", j.command()))
	}
	return errors.Join(failed...)
}

// runVersions runs the jobs whose results are not in the cache folder, and writes the page.
func (o options) runVersions(ctx context.Context) error {
	all, err := jobs()
	if err != nil {
		return err
	}
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "versions")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var failed []error
	for i := range all {
		j := &all[i]
		err := j.load(dir)
		if errors.Is(err, fs.ErrNotExist) {
			err = o.runJob(ctx, j, dir)
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return writePage(all)
}

func (o options) runJob(ctx context.Context, j *job, dir string) (err error) {
	fmt.Println(j.command())
	if j.Tests != "" {
		o.tests = j.Tests
	}
	if j.Results, err = o.runInCluster(ctx, cluster.Options{Kubernetes: j.Kubernetes}, "ACCESS="+j.Access); err != nil {
		return fmt.Errorf("%s: %w", j.command(), err)
	}
	if err := j.check(); err != nil {
		return err
	}
	content, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(j.file(dir), content, 0o644)
}

// load reads the results of an earlier run.
func (j *job) load(dir string) error {
	content, err := os.ReadFile(j.file(dir))
	if err != nil {
		return err
	}
	return json.Unmarshal(content, j)
}

func (j job) file(dir string) string {
	name := j.Kubernetes.Version + "-" + j.Access
	if j.Tests != "" {
		name += "-upgrade"
	}
	return filepath.Join(dir, name+".json")
}

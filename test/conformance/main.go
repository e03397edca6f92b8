// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fsuser-csi/fsuser-csi/deploy"
	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/setup"
)

const driverImage = "fsuser.test/fsuser-csi:conformance"

// featureGates make the fields work that some of the specs are about: a user for a volume and its items (KEP-5936). They are alpha.
const featureGates = "--feature-gates=AtomicWriteVolumeUserFields=true"

const document = "docs/conformance.md"

type options struct {
	match        string
	inTree, keep bool
}

func main() {
	var o options
	flag.StringVar(&o.match, "run", "", "run the specs whose name matches this `pattern`, and write nothing")
	flag.BoolVar(&o.inTree, "in-tree", false, "run them without the driver, and write nothing")
	flag.BoolVar(&o.keep, "keep", false, "leave the cluster running, for the next run; fsuser-cluster -run .cache/conformance-cluster down ends it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) (err error) {
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "conformance")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	p, err := findPrograms()
	if err != nil {
		return err
	}
	c, end, err := o.start(ctx, p, cache, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	begin := time.Now()
	r, err := o.conform(ctx, p, c, dir)
	if err != nil {
		return err
	}
	r.took = time.Since(begin)
	problems := r.problems
	for _, v := range r.verdicts {
		if v.problem != "" {
			problems = append(problems, v.name+"\n    "+strings.ReplaceAll(v.problem, "\n", "\n    "))
		}
	}
	fmt.Printf("%d specs in %.0f s; %d volumes published by the driver; %d problems; the report is in %s\n",
		len(r.verdicts), r.took.Seconds(), sum(r.verdicts), len(problems), dir)
	if len(problems) > 0 {
		return fmt.Errorf("%d problems:\n  %s", len(problems), strings.Join(problems, "\n  "))
	}
	if o.inTree || o.match != "" {
		return nil
	}
	return os.WriteFile(filepath.Join(repository, document), []byte(r.document(expectations)), 0o644)
}

// start starts the cluster with all images.
func (o options) start(ctx context.Context, p programs, cache, dir string) (_ *cluster.Cluster, end func() error, err error) {
	asked, err := askedFor(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	agnhost, err := asked.build(ctx, p, dir)
	if err != nil {
		return nil, nil, err
	}
	driver, err := setup.DriverImage(ctx, dir, driverImage)
	if err != nil {
		return nil, nil, err
	}
	c, end, err := setup.Cluster(ctx, cluster.Options{
		RunDir:        filepath.Join(cache, "conformance-cluster"),
		APIServerArgs: []string{featureGates},
		KubeletArgs:   []string{featureGates},
	}, o.keep, agnhost, driver)
	if err != nil {
		return nil, nil, err
	}
	if err := asked.tag(ctx, c); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return c, end, nil
}

// result is what a run has seen.
type result struct {
	verdicts []verdict
	problems []string // of the run; a spec's are in its verdict
	server   string   // version
	took     time.Duration
}

// conform installs the driver, runs the specs, and judges them.
func (o options) conform(ctx context.Context, p programs, c *cluster.Cluster, dir string) (r result, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return result{}, err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return result{}, err
	}
	version, err := client.ServerVersion()
	if err != nil {
		return result{}, err
	}
	r.server = version.GitVersion
	if !o.inTree {
		if err := setup.Install(ctx, c, driverImage, "fsuser-csi.yaml", deploy.FsUserFile); err != nil {
			return result{}, err
		}
		if err := setup.Apply(ctx, c, policies); err != nil {
			return result{}, err
		}
		if err := proveStrict(ctx, client); err != nil {
			return result{}, err
		}
	}
	watch, err := observe(ctx, client)
	if err != nil {
		return result{}, err
	}
	defer watch.stop()
	var before, after counts
	if !o.inTree {
		if before, err = readCounts(ctx, client); err != nil {
			return result{}, err
		}
	}
	specs, err := runSpecs(ctx, p, c, dir, o.match)
	if err != nil {
		return result{}, err
	}
	if err := namespacesGone(ctx, c); err != nil {
		return result{}, err
	}
	if o.inTree {
		r.verdicts = judgeInTree(specs)
		return r, nil
	}
	r.verdicts = judge(specs, watch.of, expectations)
	if o.match == "" {
		r.problems = complete(specs, expectations)
	}
	if after, err = readCounts(ctx, client); err != nil {
		return result{}, err
	}
	if counted := after.published - before.published; counted != sum(r.verdicts) {
		r.problems = append(r.problems, fmt.Sprintf("the driver counts %d volumes that it published; those of pods that ran are %d. Before:\n%s\nAfter:\n%s",
			counted, sum(r.verdicts), before.all, after.all))
	}
	if after.held != 0 {
		r.problems = append(r.problems, fmt.Sprintf("the driver holds %d volumes, and all pods are gone", after.held))
	}
	return r, nil
}

// namespacesGone waits until nothing of the tests is left. They do not wait for it themselves.
func namespacesGone(ctx context.Context, c *cluster.Cluster) error {
	_, err := c.Run(ctx, "kubectl", "wait", "--for=delete", "namespace", "--selector="+testLabel, "--timeout=3m")
	if err != nil && !strings.Contains(err.Error(), "no matching resources") {
		return fmt.Errorf("wait for the end of the tests' namespaces: %w", err)
	}
	return nil
}

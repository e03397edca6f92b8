// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command conformance runs Kubernetes' own specs for Secret, ConfigMap, downward API and projected volumes, and its
// external-storage suite, from its e2e.test, in a cluster with the driver and the fs-user policy, installed as users
// install them. The policy moves every volume of the specs behind a volume of the driver. The run fails unless each
// spec passes with only volumes of the driver.
//
//	make conformance                                         # builds e2e.test, too; writes docs/conformance.md
//	go run ./test/conformance -run 'Projected secret' -keep # some specs, in a cluster that stays; writes nothing
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

// featureGates enable the alpha fields that some of the specs test: a user for a volume and its items (KEP-5936).
const featureGates = "--feature-gates=AtomicWriteVolumeUserFields=true"

const documentPath = "docs/conformance.md"

type options struct {
	match string
	keep  bool
}

func main() {
	var o options
	flag.StringVar(&o.match, "run", "", "run the specs whose name matches this `pattern`, and write nothing")
	flag.BoolVar(&o.keep, "keep", false,
		"leave the cluster running, for the next run; fsuser-cluster -run .cache/conformance-cluster down ends it")
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
	return o.report(r, dir, filepath.Join(repository, documentPath))
}

// report prints the result, and writes the document if all specs ran and have no problem.
func (o options) report(r result, dir, path string) error {
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
	if o.match != "" {
		return nil
	}
	return os.WriteFile(path, []byte(r.document()), 0o644)
}

// start starts the cluster with all images.
func (o options) start(ctx context.Context, p programs, cache, dir string) (
	_ *cluster.Cluster, end func() error, err error,
) {
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

// result is the result of a run.
type result struct {
	verdicts []verdict
	problems []string // the problems of the run; those of a spec are in its verdict
	server   string   // the version of the API server
	took     time.Duration
}

// conform installs the driver, runs the specs, and judges them.
func (o options) conform(ctx context.Context, p programs, c *cluster.Cluster, dir string) (r result, err error) {
	client, err := install(ctx, c)
	if err != nil {
		return result{}, err
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return result{}, err
	}
	r.server = version.GitVersion
	watch, err := observe(ctx, client)
	if err != nil {
		return result{}, err
	}
	defer watch.stop()
	before, err := readCounts(ctx, client)
	if err != nil {
		return result{}, err
	}
	specs, err := runSpecs(ctx, p, c, dir, o.match)
	if err != nil {
		return result{}, err
	}
	if err := namespacesGone(ctx, c); err != nil {
		return result{}, err
	}
	after, err := readCounts(ctx, client)
	if err != nil {
		return result{}, err
	}
	r.verdicts = judge(specs, watch.of)
	if o.match == "" {
		r.problems = complete(specs)
	}
	r.problems = append(r.problems, compare(before, after, sum(r.verdicts))...)
	return r, nil
}

// install installs the driver and the policies, and returns a client for the cluster.
func install(ctx context.Context, c *cluster.Cluster) (kubernetes.Interface, error) {
	if err := setup.Install(ctx, c, driverImage, "fsuser-csi.yaml", deploy.FsUserFile); err != nil {
		return nil, err
	}
	if err := setup.Apply(ctx, c, annotate); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return client, waitForPolicies(ctx, client)
}

// namespacesGone waits until the namespaces of the tests are deleted. The tests do not wait for that.
func namespacesGone(ctx context.Context, c *cluster.Cluster) error {
	_, err := c.Run(ctx, "kubectl", "wait", "--for=delete", "namespace", "--selector="+testLabel, "--timeout=3m")
	if err != nil && !strings.Contains(err.Error(), "no matching resources") {
		return fmt.Errorf("wait for the end of the tests' namespaces: %w", err)
	}
	return nil
}

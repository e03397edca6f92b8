// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command vm runs the tests of the driver's kernel packages, the driver and the demo in virtual machines with other
// kernels, and writes docs/kernels.md with the reports of the machines: "make vm". QEMU emulates the machines, or uses
// KVM if KVM works. The kernels are packages of Debian. The command installs missing programs with apt-get, and
// requires root.
//
//	go run ./test/vm [-run MACHINE,...]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

func main() {
	names := flag.String("run", "",
		"run only these `machines`, separated by commas, and take the last results of the others")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *names)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// runner has the parts that all machines share.
type runner struct {
	repository, cache string
	works             []string // the accelerator for this machine's architecture, once it is known
}

func run(ctx context.Context, names string) error {
	repository, err := tools.Repository()
	if err != nil {
		return err
	}
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	r := &runner{repository: repository, cache: filepath.Join(cache, "vm")}
	if err := os.MkdirAll(r.cache, 0o755); err != nil {
		return err
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	if err := install(ctx, chosen); err != nil {
		return err
	}
	var failed error
	for _, m := range chosen {
		err := r.run(ctx, m)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s (console: %s):\n%w", m.name, r.log(m), err))
		}
	}
	if failed != nil {
		return failed
	}
	return r.writePage()
}

func choose(names string) ([]machine, error) {
	all := machines()
	if names == "" {
		return all, nil
	}
	var chosen []machine
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(m machine) bool { return m.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no machine %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// install installs the Debian packages whose programs are missing.
func install(ctx context.Context, machines []machine) error {
	needed := map[string]string{"xz": "xz-utils", "secilc": "secilc"}
	for _, m := range machines {
		h := hardwareOf(m.arch)
		needed[h.program] = h.debian
	}
	var missing []string
	for program, debian := range needed {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, debian)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return apt.Install(ctx, os.Stderr, missing...)
}

func (r *runner) log(m machine) string { return filepath.Join(r.cache, m.name+".log") }

// run builds a machine, runs it, and keeps its result if nothing failed.
func (r *runner) run(ctx context.Context, m machine) error {
	kept := r.kept(m)
	if err := os.RemoveAll(kept); err != nil {
		return err
	}
	fmt.Printf("%s: building\n", m.name)
	b, err := r.build(ctx, m)
	if err != nil {
		return err
	}
	accelerator, err := r.accelerator(ctx, b)
	if err != nil {
		return err
	}
	result := &result{machine: m, Version: b.version, KVM: slices.Contains(accelerator, "kvm"), Ran: map[string]counts{}}
	fmt.Printf("%s: running, with %s\n", m.name, accelerator[1])
	ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout,
		fmt.Errorf("the machine took longer than %v", machineTimeout))
	defer cancel()
	start := time.Now()
	err = boot(ctx, b, accelerator, r.log(m), result.line)
	result.Took = time.Since(start)
	err = errors.Join(err, result.check())
	fmt.Printf("%s: %v, %s\n", m.name, result.Took.Round(time.Second), result.summary())
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return os.WriteFile(kept, text, 0o644)
}

// kept returns the path of a machine's result.
func (r *runner) kept(m machine) string { return filepath.Join(r.cache, m.name+".json") }

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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

// built has the files of a machine that can start.
type built struct {
	machine
	version           string // the version of the kernel's package
	kernel, initramfs string // files
	modules           []string
	busybox, binaries string // a file, a directory
}

// The timeouts of a machine, and of a program in it, for an emulated machine on a busy host.
const (
	machineTimeout = 40 * time.Minute
	programTimeout = 15 * time.Minute
)

// build downloads and builds the files of a machine.
func (r *runner) build(ctx context.Context, m machine) (built, error) {
	b := built{machine: m, binaries: filepath.Join(r.cache, "bin-"+m.arch)}
	b.initramfs = filepath.Join(r.cache, m.name+".cpio")
	packages, err := openRelease(ctx, r.cache, m.suite, m.arch)
	if err != nil {
		return b, err
	}
	kernel, version, err := packages.kernel(ctx, m.kernel)
	if err != nil {
		return b, err
	}
	b.version = version
	if b.kernel, err = single("vmlinuz*", kernel...); err != nil {
		return b, err
	}
	// The tests use a FUSE file system with a dead server. Some kernels have FUSE built in.
	b.modules, err = find("fuse.ko*", kernel...)
	if err != nil {
		return b, err
	}
	for n, module := range b.modules {
		if b.modules[n], err = uncompressed(ctx, module); err != nil {
			return b, err
		}
	}
	if b.policy {
		if err := r.compilePolicy(ctx); err != nil {
			return b, err
		}
	}
	busybox, _, err := packages.fetch(ctx, "busybox-static")
	if err != nil {
		return b, err
	}
	if b.busybox, err = single("busybox", filepath.Join(busybox, "usr/bin"), filepath.Join(busybox, "bin")); err != nil {
		return b, err
	}
	if err := r.compile(ctx, b); err != nil {
		return b, err
	}
	return b, r.pack(b.initramfs, b, plan(b))
}

// compile builds the programs for the machine's architecture, statically.
func (r *runner) compile(ctx context.Context, b built) error {
	goBuild := func(dir, program string, verb ...string) error {
		args := slices.Concat([]string{"-C", dir}, verb,
			[]string{"-trimpath", "-tags", "grpcnotrace,vm", "-ldflags", "-s -w", "-o", program, "."})
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = r.repository, append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+b.arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return nil
	}
	err := errors.Join(goBuild("test/vm/init", filepath.Join(b.binaries, "init"), "build"),
		goBuild("cmd/fsuser-csi", filepath.Join(b.binaries, "driver"), "build"))
	for _, p := range b.programs {
		verb := []string{"build"}
		if p.isTest() {
			verb = []string{"test", "-c"}
		}
		err = errors.Join(err, goBuild(p.dir, p.binary(b.binaries), verb...))
	}
	return err
}

// compilePolicy compiles the SELinux policy. Each kernel reads version 33 and older ones.
func (r *runner) compilePolicy(ctx context.Context) error {
	_, err := output(ctx, "secilc", "--mls=true", "--policyvers=33", "--output="+r.policy(), "--filecontext=/dev/null",
		filepath.Join(r.repository, "test/vm/policy.cil"))
	return err
}

func (r *runner) policy() string { return filepath.Join(r.cache, "policy") }

// plan puts the packages at the same places in the machine as in the repository, below /repository.
func plan(b built) guest.Plan {
	p := guest.Plan{SELinux: b.policy}
	for _, module := range b.modules {
		p.Modules = append(p.Modules, "/modules/"+filepath.Base(module))
	}
	for _, program := range b.programs {
		dir := filepath.Join("/repository", program.dir)
		args := []string{filepath.Join(dir, "program")}
		if program.isTest() {
			timeout := programTimeout - time.Minute // so that the test prints where it waits
			args = append(args, "-test.v", "-test.timeout="+timeout.String(), "-test.skip="+b.skipPattern(program))
		} else {
			args = append(args, guest.Driver)
		}
		p.Programs = append(p.Programs, guest.Program{Name: program.dir, Dir: dir, Args: args, Timeout: programTimeout})
	}
	return p
}

// pack writes the initramfs of a machine with a plan.
func (r *runner) pack(path string, b built, plan guest.Plan) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	i := newInitramfs(out)
	i.bytes(guest.PlanFile, text, 0o644)
	i.file("/init", filepath.Join(b.binaries, "init"), 0o755)
	i.dir("/usr") // The tests mount it elsewhere.
	i.file("/bin/busybox", b.busybox, 0o755)
	for _, name := range []string{"cat", "ls", "sleep", "true"} {
		i.link("/bin/"+name, "busybox")
	}
	if len(plan.Programs) > 0 {
		i.file(guest.Driver, filepath.Join(b.binaries, "driver"), 0o755)
	}
	for n, module := range plan.Modules {
		i.file(module, b.modules[n], 0o644)
	}
	if plan.SELinux {
		i.file(guest.PolicyFile, r.policy(), 0o644)
	}
	for n, p := range plan.Programs {
		i.file(p.Args[0], b.programs[n].binary(b.binaries), 0o755)
		i.tree(filepath.Join(p.Dir, "testdata"), filepath.Join(r.repository, b.programs[n].dir, "testdata"))
	}
	return errors.Join(i.close(), out.Close())
}

// find returns the regular files below roots whose names match a pattern. It ignores a missing root.
func find(pattern string, roots ...string) (found []string, err error) {
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil || !d.Type().IsRegular():
				return err
			}
			matches, err := filepath.Match(pattern, d.Name())
			if matches {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// single is find for exactly one file.
func single(pattern string, roots ...string) (string, error) {
	found, err := find(pattern, roots...)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d files below %q are named %s, want 1: %q", len(found), roots, pattern, found)
	}
	return strings.Join(found, ""), err
}

// uncompressed returns the path of an uncompressed copy of a module, because not every kernel decompresses modules.
func uncompressed(ctx context.Context, module string) (string, error) {
	plain, compressed := strings.CutSuffix(module, ".xz")
	if !compressed {
		return module, nil
	}
	content, err := output(ctx, "xz", "--decompress", "--stdout", module)
	if err != nil {
		return "", err
	}
	return plain + ".plain", os.WriteFile(plain+".plain", []byte(content), 0o644)
}

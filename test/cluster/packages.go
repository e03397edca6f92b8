// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// requirement is a Debian package and a file by which it is recognized, also
// where another distribution brought that.
type requirement struct {
	debian string
	files  string // pattern
}

func requirements() []requirement {
	return []requirement{
		{"busybox-static", "{/usr,}/bin/busybox"},
		{"containernetworking-plugins", "/usr/lib/cni/bridge"},
		{"gcc", "/usr/bin/gcc"},                                             // runc
		{"iproute2", "{/usr,}/{s,}bin/ip"},                                  // the node's address
		{"iptables", "{/usr,}/sbin/iptables"},                               // kube-proxy
		{"libc6-dev", "/usr/include/stdio.h"},                               // runc
		{"libseccomp-dev", "/usr/{lib,lib64}/{*/,}pkgconfig/libseccomp.pc"}, // runc
		{"pkg-config", "/usr/bin/pkg-config"},                               // runc
		{"util-linux", "/usr/bin/nsenter"},
	}
}

// installPackages installs the Debian packages that are missing.
func installPackages(ctx context.Context, progress io.Writer) error {
	missing, err := missingPackages()
	if err != nil || len(missing) == 0 {
		return err
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return fmt.Errorf("there is no apt-get to install it with: install what these Debian packages have: %s", strings.Join(missing, " "))
	}
	fmt.Fprintf(progress, "installing with apt-get: %s\n", strings.Join(missing, " "))
	install := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	if err := run(ctx, apt, install...); err != nil {
		// Without package lists, or with old ones, it cannot.
		if err := run(ctx, apt, "update"); err != nil {
			return err
		}
		return run(ctx, apt, install...)
	}
	return nil
}

func missingPackages() ([]string, error) {
	var missing []string
	for _, r := range requirements() {
		there := false
		for _, pattern := range expand(r.files) {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return nil, fmt.Errorf("look for %s: %w", pattern, err)
			}
			there = there || len(found) > 0
		}
		if !there {
			missing = append(missing, r.debian)
		}
	}
	return missing, nil
}

// expand returns the alternatives of a pattern with {a,b}, which Glob has not.
func expand(pattern string) []string {
	before, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return []string{pattern}
	}
	choices, after, _ := strings.Cut(rest, "}")
	var all []string
	for choice := range strings.SplitSeq(choices, ",") {
		all = append(all, expand(before+choice+after)...)
	}
	return all
}

// run runs a command of the machine.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	cmd.WaitDelay = 10 * time.Second
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, output)
	}
	return nil
}

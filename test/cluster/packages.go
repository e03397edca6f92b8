// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/apt"
)

// requirement is a Debian package that the cluster requires, and a file of the package. The file shows that the machine
// has the content of the package, even if another distribution installed it. Packages that only images require are not
// here.
type requirement struct {
	debian string
	files  string // a pattern
}

func requirements() []requirement {
	return []requirement{
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
	return apt.Install(ctx, progress, missing...)
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

// expand returns the alternatives of a pattern with {a,b}, which Glob does not support.
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

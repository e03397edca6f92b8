// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// Kubernetes is a release of Kubernetes for test clusters. There is one for each minor version, and each is built from
// a module of its own, ../kubernetes/<minor version>.
type Kubernetes struct {
	Version, Date string // the version and the date of the release
}

// Versions returns the releases, the oldest first.
func Versions() []Kubernetes {
	return []Kubernetes{
		{"v1.35.4", "2026-04-15T18:01:22Z"},
		{"v1.36.3", "2026-07-22T18:07:38Z"},
		{"v1.37.2", "2026-10-27T12:01:04Z"},
	}
}

// Newest returns the default release of a cluster.
func Newest() Kubernetes {
	all := Versions()
	return all[len(all)-1]
}

// KubernetesEnv is the environment variable that chooses the minor version of a cluster.
const KubernetesEnv = "KUBERNETES"

// FromEnvironment returns the release that KubernetesEnv chooses, or Newest.
func FromEnvironment() (Kubernetes, error) {
	wanted := os.Getenv(KubernetesEnv)
	if wanted == "" {
		return Newest(), nil
	}
	var minors []string
	for _, k := range Versions() {
		if k.Minor() == wanted {
			return k, nil
		}
		minors = append(minors, k.Minor())
	}
	return Kubernetes{}, fmt.Errorf("%s=%s: want one of %s", KubernetesEnv, wanted, strings.Join(minors, ", "))
}

// Minor returns the minor version, for example 1.37.
func (k Kubernetes) Minor() string {
	return strings.Join(k.numbers()[:2], ".")
}

func (k Kubernetes) numbers() []string { return strings.Split(strings.TrimPrefix(k.Version, "v"), ".") }

// makeArgument returns the argument for a make target that builds this release.
func (k Kubernetes) makeArgument() string {
	if k == Newest() {
		return ""
	}
	return " " + KubernetesEnv + "=" + k.Minor()
}

// dir returns the folder of the release's module in test/cluster.
func (k Kubernetes) dir() string { return path.Join("kubernetes", k.Minor()) }

// command describes the command in a folder of k8s.io/kubernetes.
func (k Kubernetes) command(dir, target, cost string) Tool {
	return Tool{
		Name:    path.Base(dir),
		Version: k.Version,
		Module:  "k8s.io/kubernetes",
		Dir:     k.dir(),
		Package: "k8s.io/kubernetes/" + dir,
		LDFlags: k.ldFlags(),
		Target:  target,
		Cost:    cost + " on 2 cores",
	}
}

// tests describes the test program in a folder of k8s.io/kubernetes.
func (k Kubernetes) tests(dir, target, cost string) Tool {
	t := k.command(dir, target, cost)
	t.Name, t.Tests = t.Name+".test", true
	return t
}

// ldFlags sets the version that the programs report. Without these flags, the version is v0.0.0-master+$Format:%H$,
// which kubectl and version skew checks cannot parse. The commit is unknown, because a Go module does not contain it.
func (k Kubernetes) ldFlags() []string {
	values := []string{
		"gitVersion=" + k.Version,
		"gitMajor=" + k.numbers()[0],
		"gitMinor=" + k.numbers()[1],
		"gitCommit=unknown",
		"gitTreeState=clean",
		"buildDate=" + k.Date,
	}
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range values {
			flags = append(flags, "-X "+pkg+"."+v)
		}
	}
	return flags
}

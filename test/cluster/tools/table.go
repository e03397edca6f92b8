// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"path"
	"slices"
	"strings"
)

const (
	kubernetesVersion  = "v1.37.2"
	kubernetesReleased = "2026-10-27T12:01:04Z"
	etcdVersion        = "v3.7.3"
	containerdVersion  = "v2.4.2"
	runcVersion        = "v1.5.2"
	helmVersion        = "v4.3.1"
	ginkgoVersion      = "v2.32.0" // that of Kubernetes' go.mod
)

// The make targets that build tools.
const (
	controlPlaneTarget = "control-plane"
	clusterTarget      = "cluster-up"
	conformanceTarget  = "conformance"
)

// All returns every tool that ../build can build.
func All() []Tool {
	return []Tool{
		kubernetes("cmd/kube-apiserver", controlPlaneTarget, "about 4 minutes"),
		{
			Name:    "etcd",
			Version: etcdVersion,
			Module:  "go.etcd.io/etcd/server/v3",
			Dir:     "etcd",
			Package: "go.etcd.io/etcd/server/v3",
			Target:  controlPlaneTarget,
			Cost:    "about half a minute on 2 cores",
		},
		kubernetes("cmd/kubelet", clusterTarget, "about 2 minutes"),
		kubernetes("cmd/kube-controller-manager", clusterTarget, "about a minute"),
		kubernetes("cmd/kube-scheduler", clusterTarget, "about a quarter of a minute"),
		kubernetes("cmd/kube-proxy", clusterTarget, "about a quarter of a minute"),
		kubernetes("cmd/kubectl", clusterTarget, "about half a minute"),
		containerd("containerd", "about a minute"),
		containerd("containerd-shim-runc-v2", "a few seconds"),
		containerd("ctr", "a few seconds"),
		{
			Name:    "runc",
			Version: runcVersion,
			Module:  "github.com/opencontainers/runc",
			Dir:     "runc",
			Package: "github.com/opencontainers/runc",
			Tags:    []string{"seccomp"}, // the runtime's default profile needs it
			Cgo:     true,
			Target:  clusterTarget,
			Cost:    "about ten seconds on 2 cores",
		},
		{
			Name:    "helm",
			Version: helmVersion,
			Module:  "helm.sh/helm/v4",
			Dir:     "helm",
			Package: "helm.sh/helm/v4/cmd/helm",
			LDFlags: []string{
				"-X helm.sh/helm/v4/internal/version.version=" + helmVersion,
				"-X helm.sh/helm/v4/internal/version.gitTreeState=clean",
			},
			Target: controlPlaneTarget,
			Cost:   "about 2 minutes on 2 cores",
		},
		kubernetes("test/images/agnhost", conformanceTarget, "a few seconds"),
		kubernetesTests("test/e2e", conformanceTarget, "about 2 minutes"),
		{
			Name:    "ginkgo",
			Version: ginkgoVersion,
			Module:  "github.com/onsi/ginkgo/v2",
			Dir:     "kubernetes",
			Package: "github.com/onsi/ginkgo/v2/ginkgo",
			Target:  conformanceTarget,
			Cost:    "a few seconds on 2 cores",
		},
	}
}

// OfCluster returns the tools that a cluster is made of, or that people use in it.
func OfCluster() []Tool {
	return slices.DeleteFunc(All(), func(t Tool) bool { return t.Target == conformanceTarget })
}

// kubernetes describes the command in a folder of k8s.io/kubernetes.
func kubernetes(dir, target, cost string) Tool {
	return Tool{
		Name:    path.Base(dir),
		Version: kubernetesVersion,
		Module:  "k8s.io/kubernetes",
		Dir:     "kubernetes",
		Package: "k8s.io/kubernetes/" + dir,
		LDFlags: kubernetesLDFlags(),
		Target:  target,
		Cost:    cost + " on 2 cores",
	}
}

// kubernetesTests describes the program of the tests in a folder of k8s.io/kubernetes.
func kubernetesTests(dir, target, cost string) Tool {
	t := kubernetes(dir, target, cost)
	t.Name, t.Tests = t.Name+".test", true
	return t
}

// containerd describes a command of containerd.
func containerd(name, cost string) Tool {
	const module = "github.com/containerd/containerd/v2"
	return Tool{
		Name:    name,
		Version: containerdVersion,
		Module:  module,
		Dir:     "containerd",
		Package: module + "/cmd/" + name,
		LDFlags: []string{
			"-X " + module + "/version.Version=" + containerdVersion,
			"-X " + module + "/version.Revision=unknown",
		},
		Target: clusterTarget,
		Cost:   cost + " on 2 cores",
	}
}

// kubernetesLDFlags sets the version that the programs report. Kubernetes has
// no usable default: without these it is v0.0.0-master+$Format:%H$, which
// kubectl and version skew checks cannot parse. A Go module does not carry its
// commit, so that one is unknown.
func kubernetesLDFlags() []string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	values := []string{
		"gitVersion=" + kubernetesVersion,
		"gitMajor=" + major,
		"gitMinor=" + minor,
		"gitCommit=unknown",
		"gitTreeState=clean",
		"buildDate=" + kubernetesReleased,
	}
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range values {
			flags = append(flags, "-X "+pkg+"."+v)
		}
	}
	return flags
}

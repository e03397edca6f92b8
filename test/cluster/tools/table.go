// SPDX-License-Identifier: Apache-2.0

package tools

import "strings"

const (
	kubernetesVersion  = "v1.37.2"
	kubernetesReleased = "2026-10-27T12:01:04Z"
	etcdVersion        = "v3.7.3"
	containerdVersion  = "v2.4.2"
	runcVersion        = "v1.5.2"
	helmVersion        = "v4.3.1"
)

// The make targets that build tools.
const (
	controlPlaneTarget = "control-plane"
	clusterTarget      = "cluster-up"
)

// All returns every tool that ../build can build.
func All() []Tool {
	return []Tool{
		kubernetes("kube-apiserver", controlPlaneTarget, "about 4 minutes"),
		{
			Name:    "etcd",
			Version: etcdVersion,
			Module:  "go.etcd.io/etcd/server/v3",
			Dir:     "etcd",
			Package: "go.etcd.io/etcd/server/v3",
			Target:  controlPlaneTarget,
			Cost:    "about half a minute on 2 cores",
		},
		kubernetes("kubelet", clusterTarget, "about 2 minutes"),
		kubernetes("kube-controller-manager", clusterTarget, "about a minute"),
		kubernetes("kube-scheduler", clusterTarget, "about a quarter of a minute"),
		kubernetes("kube-proxy", clusterTarget, "about a quarter of a minute"),
		kubernetes("kubectl", clusterTarget, "about half a minute"),
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
	}
}

// kubernetes describes a command of k8s.io/kubernetes.
func kubernetes(name, target, cost string) Tool {
	return Tool{
		Name:    name,
		Version: kubernetesVersion,
		Module:  "k8s.io/kubernetes",
		Dir:     "kubernetes",
		Package: "k8s.io/kubernetes/cmd/" + name,
		LDFlags: kubernetesLDFlags(),
		Target:  target,
		Cost:    cost + " on 2 cores",
	}
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

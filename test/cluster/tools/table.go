// SPDX-License-Identifier: Apache-2.0

package tools

import "strings"

const (
	kubernetesVersion  = "v1.37.2"
	kubernetesReleased = "2026-10-27T12:01:04Z"
	etcdVersion        = "v3.7.3"
)

// All returns every tool that ../build can build.
func All() []Tool {
	return []Tool{
		kubernetes("kube-apiserver", "about 4 minutes on 2 cores"),
		{
			Name:    "etcd",
			Version: etcdVersion,
			Module:  "go.etcd.io/etcd/server/v3",
			Dir:     "etcd",
			Package: "go.etcd.io/etcd/server/v3",
			Target:  "control-plane",
			Cost:    "about half a minute on 2 cores",
		},
	}
}

// kubernetes describes a command of k8s.io/kubernetes.
func kubernetes(name, cost string) Tool {
	return Tool{
		Name:    name,
		Version: kubernetesVersion,
		Module:  "k8s.io/kubernetes",
		Dir:     "kubernetes",
		Package: "k8s.io/kubernetes/cmd/" + name,
		LDFlags: kubernetesLDFlags(),
		Target:  "control-plane",
		Cost:    cost,
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

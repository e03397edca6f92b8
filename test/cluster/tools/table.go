// SPDX-License-Identifier: Apache-2.0

package tools

const (
	etcdVersion       = "v3.7.3"
	containerdVersion = "v2.4.2"
	runcVersion       = "v1.5.2"
	helmVersion       = "v4.3.1"
	ginkgoVersion     = "v2.32.0"  // that of Kubernetes' go.mod
	prometheusVersion = "v0.316.0" // of the Go module, whose releases are v3.16.0
)

// The make targets that build tools.
const (
	controlPlaneTarget = "control-plane"
	clusterTarget      = "cluster-up"
	conformanceTarget  = "conformance"
	alertsTarget       = "alerts"
)

// All returns all tools that ../build can build, with the programs of this Kubernetes. The tools of the conformance
// target are only in the module of the newest Kubernetes.
func All(k Kubernetes) []Tool {
	all := append(OfCluster(k), prometheus("promtool", controlPlaneTarget, "about a minute"),
		prometheus("prometheus", alertsTarget, "about a minute"))
	if k == Newest() {
		all = append(all, ofConformance(k)...)
	}
	return all
}

// OfCluster returns the tools of a cluster of this Kubernetes, including those for people who use the cluster.
func OfCluster(k Kubernetes) []Tool {
	return []Tool{
		k.command("cmd/kube-apiserver", controlPlaneTarget, "about 4 minutes"),
		{
			Name:    "etcd",
			Version: etcdVersion,
			Module:  "go.etcd.io/etcd/server/v3",
			Dir:     "etcd",
			Package: "go.etcd.io/etcd/server/v3",
			Target:  controlPlaneTarget,
			Cost:    "about half a minute on 2 cores",
		},
		k.command("cmd/kubelet", clusterTarget, "about 2 minutes"),
		k.command("cmd/kube-controller-manager", clusterTarget, "about a minute"),
		k.command("cmd/kube-scheduler", clusterTarget, "about a quarter of a minute"),
		k.command("cmd/kube-proxy", clusterTarget, "about a quarter of a minute"),
		k.command("cmd/kubectl", clusterTarget, "about half a minute"),
		containerd("containerd", "about a minute"),
		containerd("containerd-shim-runc-v2", "a few seconds"),
		containerd("ctr", "a few seconds"),
		{
			Name:    "runc",
			Version: runcVersion,
			Module:  "github.com/opencontainers/runc",
			Dir:     "runc",
			Package: "github.com/opencontainers/runc",
			Tags:    []string{"seccomp"}, // required by the runtime's default profile
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

func ofConformance(k Kubernetes) []Tool {
	return []Tool{
		k.command("test/images/agnhost", conformanceTarget, "a few seconds"),
		k.tests("test/e2e", conformanceTarget, "about 2 minutes"),
		{
			Name:    "ginkgo",
			Version: ginkgoVersion,
			Module:  "github.com/onsi/ginkgo/v2",
			Dir:     k.dir(),
			Package: "github.com/onsi/ginkgo/v2/ginkgo",
			Target:  conformanceTarget,
			Cost:    "a few seconds on 2 cores",
		},
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

// prometheus describes a command of Prometheus. The build discovers targets only in files and in Kubernetes.
func prometheus(name, target, cost string) Tool {
	const module = "github.com/prometheus/prometheus"
	return Tool{
		Name:    name,
		Version: prometheusVersion,
		Module:  module,
		Dir:     "prometheus",
		Package: module + "/cmd/" + name,
		Tags:    []string{"remove_all_sd", "enable_kubernetes_sd"},
		Target:  target,
		Cost:    cost + " on 2 cores",
	}
}

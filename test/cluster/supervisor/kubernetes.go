// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// volumePlugins replaces the default folder, which kubelet would create below /usr.
const volumePlugins = KubeletRoot + "/volume-plugins"

// A node is lost when its kubelet has been silent for lostSeconds, which is less than the default. kubelet renews its
// lease after a quarter of leaseSeconds.
const (
	leaseSeconds = 12
	lostSeconds  = 30
)

// writeCredentials writes the client configurations of the kubelet and kube-proxy of each node, and of the commands of
// tests on the node.
func (n *controlNode) writeCredentials() error {
	for number := firstNode; number <= n.spec.Nodes; number++ {
		paths := n.paths.Node(number)
		if err := os.MkdirAll(paths.Data("config"), 0o755); err != nil {
			return fmt.Errorf("make folder of the node: %w", err)
		}
		admin := n.control.AdminConfig()
		if err := os.WriteFile(paths.clientCA(), admin.CAData, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
		node := "system:node:" + number.Name()
		if err := errors.Join(
			n.writeUser(paths.kubeletConfig(), number, node, "system:nodes"),
			n.writeUser(paths.proxyConfig(), number, "system:kube-proxy"),
		); err != nil {
			return err
		}
		if number > firstNode {
			admin.Host = n.hostFor(number)
			if err := n.control.Kubeconfig(paths.Kubeconfig(), admin); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeUser writes the configuration of a client on a node.
func (n *controlNode) writeUser(path string, number Number, user string, groups ...string) error {
	config, err := n.control.UserConfig(user, groups...)
	if err != nil {
		return err
	}
	config.Host = n.hostFor(number)
	return n.control.Kubeconfig(path, config)
}

// hostFor returns the host of the API server for a node.
func (n *controlNode) hostFor(number Number) string {
	if number == firstNode {
		return n.control.AdminConfig().Host
	}
	return fmt.Sprintf("https://%s:%d", firstNode.Address(), n.spec.APIServerPort)
}

// startControllers starts the scheduler and the controller manager. Their order does not matter.
func (n *controlNode) startControllers() error {
	kubeconfigs := make(map[string]string)
	for _, name := range []string{"system:kube-scheduler", "system:kube-controller-manager"} {
		kubeconfigs[name] = n.paths.Data("config", name+".kubeconfig")
		if err := n.writeUser(kubeconfigs[name], firstNode, name); err != nil {
			return err
		}
	}
	if err := n.run("kube-controller-manager",
		"--kubeconfig="+kubeconfigs["system:kube-controller-manager"],
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--node-monitor-period=2s",
		"--node-monitor-grace-period="+strconv.Itoa(lostSeconds)+"s",
		"--service-account-private-key-file="+n.control.ServiceAccountKeyFile(),
		"--root-ca-file="+n.control.CAFile(),
		"--flex-volume-plugin-dir="+volumePlugins,
		"--profiling=false",
	); err != nil {
		return err
	}
	return n.run("kube-scheduler",
		"--kubeconfig="+kubeconfigs["system:kube-scheduler"],
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
	)
}

func (n *node) startProxy() error {
	config := n.paths.Data("config", "kube-proxy.yaml")
	// The limits of connection tracking belong to the machine, so kube-proxy must not change them.
	if err := n.writeConfig(config, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: `+n.number.Name()+`
clusterCIDR: `+podRanges+`
oomScoreAdj: 0
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
iptables:
  minSyncPeriod: 100ms
clientConnection:
  kubeconfig: `+n.paths.proxyConfig()+`
`); err != nil {
		return err
	}
	return n.run("kube-proxy", "--config="+config, "--v=2")
}

// startKubelet starts kubelet. Its configuration accepts cgroup v1, swap and a full disk, because the machine may have
// them. Pods get no DNS server.
func (n *node) startKubelet() error {
	resolv := n.paths.Data("config", "resolv.conf")
	if err := n.writeConfig(resolv, "# no name server\n"); err != nil {
		return err
	}
	config := n.paths.Data("config", "kubelet.yaml")
	if err := n.writeConfig(config, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: `+n.paths.clientCA()+`}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://`+containerdSocket+`
cgroupDriver: cgroupfs
cgroupRoot: /`+n.cgroup()+`
nodeLeaseDurationSeconds: `+strconv.Itoa(leaseSeconds)+`
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
resolvConf: `+resolv+`
volumePluginDir: `+volumePlugins+`
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  memory.available: "0%"
  nodefs.available: "0%"
  nodefs.inodesFree: "0%"
  imagefs.available: "0%"
  imagefs.inodesFree: "0%"
`); err != nil {
		return err
	}
	args := []string{
		"--config=" + config,
		"--kubeconfig=" + n.paths.kubeletConfig(),
		"--hostname-override=" + n.number.Name(),
		"--node-ip=" + n.number.Address(),
		"--root-dir=" + KubeletRoot,
		"--v=2",
	}
	return n.run("kubelet", append(args, n.spec.KubeletArgs...)...)
}

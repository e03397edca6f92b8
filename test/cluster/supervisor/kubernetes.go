// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

// volumePlugins: the default, below /usr, would be made there.
const volumePlugins = KubeletRoot + "/volume-plugins"

// startKubernetes starts what needs the API server, in any order: each waits
// for what it needs.
func (n *node) startKubernetes() error {
	kubeconfigs := make(map[string]string)
	for name, groups := range map[string][]string{
		"system:kube-scheduler":          nil,
		"system:kube-controller-manager": nil,
		"system:kube-proxy":              nil,
		"system:node:" + NodeName:        {"system:nodes"},
	} {
		config, err := n.control.UserConfig(name, groups...)
		if err != nil {
			return err
		}
		kubeconfigs[name] = n.paths.Data("config", name+".kubeconfig")
		if err := n.control.Kubeconfig(kubeconfigs[name], config); err != nil {
			return err
		}
	}
	if err := n.startKubelet(kubeconfigs["system:node:"+NodeName]); err != nil {
		return err
	}
	if err := n.run("kube-controller-manager",
		"--kubeconfig="+kubeconfigs["system:kube-controller-manager"],
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file="+n.control.ServiceAccountKeyFile(),
		"--root-ca-file="+n.control.CAFile(),
		"--flex-volume-plugin-dir="+volumePlugins,
		"--profiling=false",
	); err != nil {
		return err
	}
	if err := n.run("kube-scheduler",
		"--kubeconfig="+kubeconfigs["system:kube-scheduler"],
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
	); err != nil {
		return err
	}
	return n.startProxy(kubeconfigs["system:kube-proxy"])
}

func (n *node) startProxy(kubeconfig string) error {
	config := n.paths.Data("config", "kube-proxy.yaml")
	// Limits of connection tracking are the machine's, so they are left alone.
	if err := n.writeConfig(config, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: `+NodeName+`
clusterCIDR: `+podRange+`
oomScoreAdj: 0
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
iptables:
  minSyncPeriod: 100ms
clientConnection:
  kubeconfig: `+kubeconfig+`
`); err != nil {
		return err
	}
	return n.run("kube-proxy", "--config="+config, "--v=2")
}

// startKubelet starts kubelet. It takes cgroup v1, swap and a full disk, since
// the machine is what it is; and has no DNS server to give to pods.
func (n *node) startKubelet(kubeconfig string) error {
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
  x509: {clientCAFile: `+n.control.CAFile()+`}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://`+containerdSocket+`
cgroupDriver: cgroupfs
cgroupRoot: /`+n.paths.Cgroup()+`
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
		"--kubeconfig=" + kubeconfig,
		"--hostname-override=" + NodeName,
		"--node-ip=" + NodeAddress,
		"--root-dir=" + KubeletRoot,
		"--v=2",
	}
	return n.run("kubelet", append(args, n.spec.KubeletArgs...)...)
}

// SPDX-License-Identifier: Apache-2.0

// Package cluster starts a real Kubernetes for tests: etcd, API server, scheduler, controller manager, kube-proxy,
// containerd and kubelet, compiled from Go modules, in mount, network, PID, IPC and UTS namespaces of their own. It
// requires Linux and root. The cluster has one node or several.
//
//	c, err := cluster.Up(ctx, cluster.Options{Progress: os.Stderr})
//	...
//	defer c.Down(context.Background())
//	err = c.Import(ctx, "driver.tar")
//	...
//	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
//
// The kubeconfig works on the machine, so tests run outside of the cluster. [Cluster.Command] runs commands that
// require the cluster's namespaces, for example the mount namespace of kubelet. [Node] does the same on one of several
// nodes, cuts the node off from the others, and powers it off.
//
// All files of the cluster are below its run folder. The cluster ends with Down, or with the process that called Up, in
// whatever way that process ends. A detached cluster outlives the process. Package supervisor describes how the cluster
// ends without leaving anything.
//
// The cluster has no access to other networks, no DNS server, and no image registry (package images makes images).
package cluster

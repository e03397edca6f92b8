// SPDX-License-Identifier: Apache-2.0

// Package supervisor runs Kubernetes in namespaces of its own and ensures that nothing of it is left afterwards.
// Package cluster is its user interface.
//
// Three processes share the work, all of the command fsuser-cluster:
//
//	keep   in the machine's namespaces: holds the lock of the run folder and
//	       the port by which the machine reaches the API server
//	init   process 1 of new PID, mount, network, IPC and UTS namespaces: only
//	       waits for orphans
//	node   prepares the namespaces, starts etcd, the API server, containerd,
//	       kubelet and the other programs, and restarts programs that end
//
// This is the first node. Each further node has an init and a node of its own, in namespaces nested in those of the
// cluster, with kubelet, containerd and kube-proxy. A fourth process, boot, starts them and ends when the node is
// Ready. A node is powered off by killing its init. A veth pair connects the node to the first one, which routes
// between all nodes.
//
// The cluster ends when any of the three processes ends: when init or node ends, the kernel kills every process in the
// PID namespace, and mounts and interfaces are removed with the last process. Cgroups and files in the run folder are
// left. keep removes these, or node removes them if keep was killed. If both were killed at once, the next [Keep] or
// [Clean] of the folder removes them.
//
// The three processes hold the run folder's lock together. So a process that gets the lock knows that no process of an
// earlier cluster is running.
package supervisor

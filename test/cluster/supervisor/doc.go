// SPDX-License-Identifier: Apache-2.0

// Package supervisor runs Kubernetes in namespaces of its own and makes sure
// that nothing of it stays behind. Package cluster is its face.
//
// Three processes share the work, all of the command fsuser-cluster:
//
//	keep   in the machine's namespaces: holds the lock of the run folder and
//	       the port by which the machine reaches the API server
//	init   process 1 of new PID, mount, network, IPC and UTS namespaces: only
//	       waits for orphans
//	node   prepares the namespaces, starts etcd, the API server, containerd,
//	       kubelet and the rest, and starts again what ends
//
// This is the first node. Each further node has an init and a node of its own,
// in namespaces nested in the cluster's, with kubelet, containerd and kube-proxy.
// They are started by a fourth process, boot, which ends when the node is Ready.
// To power a node off is to kill its init. A veth pair connects the node to the
// first one, which routes between all nodes.
//
// However one of them ends, the cluster does: when init or node dies the
// kernel kills every process in the PID namespace, and mounts and interfaces
// go with the last of them. What is left are cgroups and files in the run
// folder. keep removes these, or node if keep was killed. If both were killed
// at once, the next [Keep] or [Clean] of the folder does.
//
// The run folder's lock is held by the three together, so whoever gets it
// knows that no process of an earlier cluster lives.
package supervisor

// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// Spec is the description of a cluster. It is passed to each process as JSON, in its arguments.
type Spec struct {
	RunDir        string           `json:"runDir"`   // absolute
	CacheDir      string           `json:"cacheDir"` // the cache of package tools, absolute
	Images        []string         `json:"images"`   // docker-archive tars to import before kubelet starts
	Kubernetes    tools.Kubernetes `json:"kubernetes"`
	APIServerArgs []string         `json:"apiServerArgs,omitempty"`
	KubeletArgs   []string         `json:"kubeletArgs,omitempty"`
	APIServerPort int              `json:"apiServerPort,omitempty"` // keep chooses it
	Nodes         Number           `json:"nodes"`                   // the number of nodes
	Node          Number           `json:"node,omitempty"`          // the node of the process; 0 for the whole cluster
}

// ParseSpec parses the result of String.
func ParseSpec(text string) (Spec, error) {
	var s Spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Spec{}, fmt.Errorf("parse what to run: %w", err)
	}
	return s, nil
}

func (s Spec) String() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // This can't happen for strings and numbers.
	}
	return string(text)
}

// Paths has the paths in a run folder.
type Paths string

func (p Paths) join(elements ...string) string {
	return filepath.Join(append([]string{string(p)}, elements...)...)
}

// Lock is locked while any process of the cluster is running. It contains the process id of keep.
func (p Paths) Lock() string { return p.join("lock") }

// State is the file with the [State]. It exists while the cluster is running.
func (p Paths) State() string { return p.join("state.json") }

// Kubeconfig is the administrator's kubeconfig. It works on the machine and in the namespaces.
func (p Paths) Kubeconfig() string { return p.join("kubeconfig") }

// Bin is a folder with links to the programs.
func (p Paths) Bin() string { return p.join("bin") }

// Logs is a folder with a file for each program. It stays until the next cluster starts.
func (p Paths) Logs() string { return p.join("logs") }

// Data is the folder of all other files of the cluster.
func (p Paths) Data(elements ...string) string {
	return p.join(append([]string{"data"}, elements...)...)
}

// Node returns the folder of a node. It has the same structure as the cluster's folder, which is also that of the first
// node.
func (p Paths) Node(node Number) Paths {
	if node <= firstNode {
		return p
	}
	return Paths(p.Data(node.Name()))
}

// PIDs is a folder with a file for each component. The file contains its process id in the PID namespace.
func (p Paths) PIDs() string { return p.Data("pids") }

// clientCA is the certificate authority of the API server's clients.
func (p Paths) clientCA() string { return p.Data("config", "ca.crt") }

// kubeletConfig and proxyConfig are the client configurations of the node's programs.
func (p Paths) kubeletConfig() string { return p.Data("config", "kubelet.kubeconfig") }
func (p Paths) proxyConfig() string   { return p.Data("config", "kube-proxy.kubeconfig") }

// Cgroup returns the name of the parent of all cgroups of the cluster. It depends only on the folder, so that the
// cgroups can be found after a crash.
func (p Paths) Cgroup() string {
	sum := sha256.Sum256([]byte(p))
	return "fsuser-cluster-" + hex.EncodeToString(sum[:4])
}

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

// Spec says what to run. It travels to each process as JSON, in its arguments.
type Spec struct {
	RunDir        string           `json:"runDir"`   // absolute
	CacheDir      string           `json:"cacheDir"` // of package tools, absolute
	Images        []string         `json:"images"`   // docker-archive tars to import before kubelet starts
	Kubernetes    tools.Kubernetes `json:"kubernetes"`
	APIServerArgs []string         `json:"apiServerArgs,omitempty"`
	KubeletArgs   []string         `json:"kubeletArgs,omitempty"`
	APIServerPort int              `json:"apiServerPort,omitempty"` // chosen by keep
	Nodes         Number           `json:"nodes"`                   // how many
	Node          Number           `json:"node,omitempty"`          // that the process is for; 0: the whole cluster
}

// ParseSpec reads what String wrote.
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
		panic(err) // strings and numbers always can
	}
	return string(text)
}

// Paths are the names in one run folder.
type Paths string

func (p Paths) join(elements ...string) string {
	return filepath.Join(append([]string{string(p)}, elements...)...)
}

// Lock is held while any process of the cluster lives; it holds the process id of keep.
func (p Paths) Lock() string { return p.join("lock") }

// State is the file of [State], there while the cluster runs.
func (p Paths) State() string { return p.join("state.json") }

// Kubeconfig is the admin's, good on the machine and in the namespaces.
func (p Paths) Kubeconfig() string { return p.join("kubeconfig") }

// Bin has links to the programs, under their names.
func (p Paths) Bin() string { return p.join("bin") }

// Logs has a file for each program. It outlives the cluster, until the next one.
func (p Paths) Logs() string { return p.join("logs") }

// Data has everything that the cluster writes.
func (p Paths) Data(elements ...string) string {
	return p.join(append([]string{"data"}, elements...)...)
}

// Node is the folder of a node. It has the same names as the cluster's folder,
// which is that of the first node too.
func (p Paths) Node(node Number) Paths {
	if node <= firstNode {
		return p
	}
	return Paths(p.Data(node.Name()))
}

// PIDs has a file for each component with its process id in the PID namespace.
func (p Paths) PIDs() string { return p.Data("pids") }

// clientCA is the certificate authority of the API server's clients.
func (p Paths) clientCA() string { return p.Data("config", "ca.crt") }

// kubeletConfig and proxyConfig are the credentials of the node's programs.
func (p Paths) kubeletConfig() string { return p.Data("config", "kubelet.kubeconfig") }
func (p Paths) proxyConfig() string   { return p.Data("config", "kube-proxy.kubeconfig") }

// Cgroup is the name of the parent of all cgroups of the cluster. It depends
// on the folder alone, so that what a crash leaves is found again.
func (p Paths) Cgroup() string {
	sum := sha256.Sum256([]byte(p))
	return "fsuser-cluster-" + hex.EncodeToString(sum[:4])
}

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

// NodeName is the name of the only node.
const NodeName = "node"

// NodeAddress is the node's address inside the network namespace.
const NodeAddress = "10.0.0.1"

// Spec says what to run. It travels to each process as JSON, in its arguments.
type Spec struct {
	RunDir        string           `json:"runDir"`   // absolute
	CacheDir      string           `json:"cacheDir"` // of package tools, absolute
	Images        []string         `json:"images"`   // docker-archive tars to import before kubelet starts
	Kubernetes    tools.Kubernetes `json:"kubernetes"`
	APIServerArgs []string         `json:"apiServerArgs,omitempty"`
	KubeletArgs   []string         `json:"kubeletArgs,omitempty"`
	APIServerPort int              `json:"apiServerPort,omitempty"` // chosen by keep
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

// PIDs has a file for each component with its process id in the PID namespace.
func (p Paths) PIDs() string { return p.Data("pids") }

// Cgroup is the name of the parent of all cgroups of the cluster. It depends
// on the folder alone, so that what a crash leaves is found again.
func (p Paths) Cgroup() string {
	sum := sha256.Sum256([]byte(p))
	return "fsuser-cluster-" + hex.EncodeToString(sum[:4])
}

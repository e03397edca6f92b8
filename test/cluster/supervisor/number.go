// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"fmt"
	"strconv"
)

// Number is the number of a node, from 1.
type Number int

// firstNode is the number of the node with the control plane, in the same namespaces.
const firstNode Number = 1

// MaxNodes is the largest number of nodes of a cluster.
const MaxNodes Number = 9

// podRanges contains the addresses of all pods.
const podRanges = "10.244.0.0/16"

// Name returns the name of the node: node, node-2, node-3.
func (n Number) Name() string {
	if n == firstNode {
		return "node"
	}
	return "node-" + strconv.Itoa(int(n))
}

// Address returns the address of the node in the network of the nodes.
func (n Number) Address() string { return fmt.Sprintf("10.0.0.%d", n) }

// port returns the name of the first node's interface to a further node.
func (n Number) port() string { return "port-" + strconv.Itoa(int(n)) }

// podRange returns the range of the addresses of the node's pods.
func (n Number) podRange() string { return fmt.Sprintf("10.244.%d.0/24", n-1) }

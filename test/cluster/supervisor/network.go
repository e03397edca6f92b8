// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// uplink is the interface with the node's address.
const uplink = "node0"

// plugIn connects the network namespace of a further node, which is that of a process, to the first node's, which
// routes between all nodes. With a bridge, the first node's connection tracking would see packets between nodes twice,
// and services would not work.
func plugIn(node Number, pid int) error {
	// The interface of an earlier boot is removed with its namespace, but not at once.
	_ = ip("link delete " + node.port()) // If the interface still exists, the next command fails.
	return ip(append(
		[]string{"link add " + node.port() + " type veth peer name " + uplink + " netns " + strconv.Itoa(pid)},
		node.Connect()...,
	)...)
}

// Connect returns the commands of ip on the first node that connect a further node. They must be repeated after those
// of Disconnect.
func (n Number) Connect() []string {
	return []string{
		"link set " + n.port() + " up",
		"route add " + n.Address() + " dev " + n.port(),
		"route add " + n.podRange() + " via " + n.Address(),
	}
}

// Disconnect returns the commands of ip that cut a further node off.
func (n Number) Disconnect() []string { return []string{"link set " + n.port() + " down"} }

// ip runs commands of ip.
func ip(commands ...string) error {
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	if output, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("set up the network with ip: %w\n%s", err, output)
	}
	return nil
}

// setUpNetwork gives the network namespace, which has no connection to other networks, an address, and a default route,
// without which services could not be routed.
func (n *node) setUpNetwork() error {
	commands := []string{
		// Pods require veth anyway, and not every kernel has dummy interfaces.
		"link add " + uplink + " type veth peer name node0-peer",
		"link set node0-peer up",
		"address add " + n.number.Address() + "/24 dev " + uplink,
		"link set " + uplink + " up",
		"route add default dev " + uplink,
	}
	if n.number > firstNode {
		commands = []string{
			"address add " + n.number.Address() + " dev " + uplink,
			"link set " + uplink + " up",
			"route add " + firstNode.Address() + " dev " + uplink,
			"route add default via " + firstNode.Address(),
		}
	}
	commands = append(commands, "link set lo up")
	if err := ip(commands...); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let packets of pods through: %w", err)
	}
	if err := unix.Sethostname([]byte(n.number.Name())); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// A bridge is enough for the pods of one node. kube-proxy routes services.
	return n.writeConfig(n.paths.Data("cni", "net.d", "10-bridge.conflist"), `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": true,
    "ipMasq": false,
    "hairpinMode": true,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "`+n.number.podRange()+`"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
`)
}

func (n *node) writeConfig(path, content string) error {
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

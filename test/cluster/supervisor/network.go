// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

const podRange = "10.244.0.0/24"

// setUpNetwork gives the network namespace, which has no way out, one address,
// and a default route, without which services could not be routed.
func (n *node) setUpNetwork() error {
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(strings.Join([]string{
		"link set lo up",
		// Pods need veth anyway; not every kernel has dummy interfaces.
		"link add node0 type veth peer name node0-peer",
		"link set node0-peer up",
		"address add " + NodeAddress + "/24 dev node0",
		"link set node0 up",
		"route add default dev node0",
	}, "\n"))
	if output, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("set up the network with ip: %w\n%s", err, output)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let packets of pods through: %w", err)
	}
	if err := unix.Sethostname([]byte(NodeName)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// A bridge is enough for the pods of one node; kube-proxy does the services.
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
      "ranges": [[{"subnet": "`+podRange+`"}]],
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

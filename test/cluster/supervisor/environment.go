// SPDX-License-Identifier: Apache-2.0

package supervisor

import "os"

// Environment returns the environment of every program in the namespaces of a node: the tools in PATH, a client
// configuration, and caches that do not belong to the user.
func Environment(paths Paths) []string {
	env := []string{
		"PATH=" + paths.Bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + paths.Data("home"),
		"TMPDIR=/run/tmp",
		"KUBECONFIG=" + paths.Kubeconfig(),
		"CONTAINERD_NAMESPACE=k8s.io",
		"LANG=C.UTF-8",
	}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

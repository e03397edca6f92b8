// SPDX-License-Identifier: Apache-2.0

// Package deploy renders the Helm chart in ./chart with the helm of package tools (make control-plane). Its tests check
// the chart against the requirements of kubelet and the API server, on a real API server.
package deploy

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// Namespace is where the manifests install the driver.
const Namespace = "fsuser-csi"

// oldest is the first version of Kubernetes that supports the whole chart. It is given to helm, so that the result does
// not depend on helm's own default.
const oldest = "1.36.0"

// FsUserFile has only the policies of fsUser. It is applied in addition to one of the other files.
const FsUserFile = "fsuser-csi-fs-user.yaml"

// AllowFile has only the policy that restricts volumes to what an administrator has allowed. It is applied in the same
// way.
const AllowFile = "fsuser-csi-allow.yaml"

// Manifest is a file that installs the driver with kubectl only.
type Manifest struct {
	File   string
	Access string
	// Warning is a warning at the beginning of the file.
	Warning string
	// Template is the only template of a file that is applied in addition to another one. Set is the value that enables
	// it.
	Template, Set string
}

// Manifests returns the files next to the chart.
func Manifests() []Manifest {
	return []Manifest{
		{File: "fsuser-csi.yaml", Access: "node"},
		{File: "fsuser-csi-namespaces.yaml", Access: "namespaces"},
		{
			File: "fsuser-csi-DANGER-cluster-wide-secrets.yaml", Access: "cluster",
			Warning: "# DANGER: this gives the driver every Secret of the cluster, on every node. Prefer fsuser-csi.yaml.\n",
		},
		{File: FsUserFile, Template: "policy-fs-user.yaml", Set: "fsUser.enabled=true"},
		{File: AllowFile, Template: "policy-allow.yaml", Set: "allow.enabled=true"},
		{File: "kustomize/gke/resourcequota.yaml", Template: "resourcequota.yaml", Set: "resourceQuota.enabled=true"},
		{
			File: "kustomize/openshift/rolebinding.yaml", Template: "openshift.yaml",
			Set: "openshift.securityContextConstraint=true",
		},
	}
}

// Render returns the content of the file, from the chart in dir.
func (m Manifest) Render(ctx context.Context, dir string) ([]byte, error) {
	what, args := "access: "+m.Access, []string{"--set", "access=" + m.Access, "--set", "namespace.create=true"}
	if m.Template != "" {
		what, args = m.Set, []string{"--set", m.Set, "--show-only", "templates/" + m.Template}
	}
	out, err := Template(ctx, dir, args...)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", m.File, err)
	}
	out = helmLabels.ReplaceAll(out, nil)
	head := "# fsuser-csi, " + what + ". Made from chart/ by `make manifests`: change that.\n" + m.Warning
	return append([]byte(head), out...), nil
}

// helmLabels are the labels of objects that helm manages. The files are for kubectl, so they do not have them.
var helmLabels = regexp.MustCompile(`(?m)^ *(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n`)

// Template runs `helm template` with the chart in dir, as release fsuser-csi in Namespace, with more arguments of helm.
// It omits the objects of `helm test`.
func Template(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return helm(ctx, append([]string{
		"template", "fsuser-csi", filepath.Join(dir, "chart"), "--namespace", Namespace,
		"--kube-version", oldest, "--skip-tests",
	}, args...)...)
}

var imageLine = regexp.MustCompile(`(?m)^( *image: )"localhost/fsuser-csi:[^"]*"$`)

// WithImage returns the manifest with another image of the driver, as kustomize would.
func WithImage(manifest []byte, image string) ([]byte, error) {
	if n := len(imageLine.FindAll(manifest, -1)); n != 1 {
		return nil, fmt.Errorf("the manifest names the driver's image %d times, want once", n)
	}
	return imageLine.ReplaceAll(manifest, fmt.Appendf(nil, "${1}%q", image)), nil
}

func helm(ctx context.Context, args ...string) ([]byte, error) {
	path, err := tools.Path(tools.Newest(), "helm")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("helm %s: %w: %s%s", args[0], err, strings.TrimSpace(stderr.String()), bytes.TrimSpace(out))
	}
	return out, nil
}

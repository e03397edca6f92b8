// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/fsuser-csi/fsuser-csi/deploy"
)

// since136 skips a test on an older Kubernetes, which lacks the features.
func since136(t *testing.T, features ...string) {
	t.Helper()
	if before136() {
		t.Skip(NotInVersion + strings.Join(features, ", "))
	}
}

func before136() bool { return Before136(server) }

// manifests returns the manifests of the kinds of access that the server supports, the default first.
func manifests() []string {
	var files []string
	for _, access := range Access(server) {
		i := slices.IndexFunc(deploy.Manifests(), func(m deploy.Manifest) bool { return m.Access == access })
		files = append(files, filepath.Join("../../deploy", deploy.Manifests()[i].File))
	}
	return files
}

// accessOf returns the kind of access of a manifest.
func accessOf(path string) string {
	i := slices.IndexFunc(deploy.Manifests(), func(m deploy.Manifest) bool { return m.File == filepath.Base(path) })
	return deploy.Manifests()[i].Access
}

// chooseAccess returns the manifest of the kind of access in ACCESS.
func chooseAccess() (string, error) {
	wanted := os.Getenv("ACCESS")
	if wanted == "" {
		return manifests()[0], nil
	}
	i := slices.Index(Access(server), wanted)
	if i < 0 {
		return "", fmt.Errorf("ACCESS=%s: want one of %s on Kubernetes %s", wanted, strings.Join(Access(server), ", "),
			server)
	}
	return manifests()[i], nil
}

// shipped returns a manifest for a user: the file next to the chart or, before 1.36, the manifest that Helm renders for
// the version (deploy/README.md).
func shipped(ctx context.Context, path string) (string, error) {
	if !before136() {
		content, err := os.ReadFile(path)
		return string(content), err
	}
	cmd := exec.CommandContext(ctx, "helm", "template", "fsuser-csi", chart, "--namespace", driverNamespace,
		"--kube-version", server.String(), "--skip-tests", "--set", "namespace.create=true,access="+accessOf(path))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	content, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, &stderr)
	}
	return string(content), nil
}

// effect returns the change that the policies of a manifest make in a pod.
func effect(manifest string) mutation {
	return mutation{completed: !before136(), declared: !before136() && manifest == manifestNode}
}

// complete sets csi.readOnly, as users do if no policy sets it.
func complete(spec *corev1.PodSpec) {
	if !before136() {
		return
	}
	for _, v := range spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == driverName && v.CSI.ReadOnly == nil {
			readOnly := true
			v.CSI.ReadOnly = &readOnly
		}
	}
}

// testOldKubernetes checks that the installation of a part that the server's version does not support fails, with the
// remedy or the version in the message.
func testOldKubernetes(t *testing.T) {
	for values, want := range map[string]string{
		"access=node":                           "--set access=namespaces",
		"access=namespaces,fsUser.enabled=true": "fsUser.enabled needs Kubernetes 1.36",
	} {
		out, err := exec.CommandContext(suite, "helm", "install", "fsuser-csi", chart, "--namespace", driverNamespace,
			"--set", values).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("helm install --set %s: error %v, want one with %q:\n%s", values, err, want, out)
		}
		t.Logf("helm install --set %s prints: %s", values, out)
	}
	files, err := filepath.Glob("../../deploy/fsuser-csi*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		_, err := kubectl(suite, "", "apply", "--dry-run=server", "-f", file)
		const message = `no matches for kind "MutatingAdmissionPolicy" in version "admissionregistration.k8s.io/v1"`
		if filepath.Base(file) == deploy.AllowFile {
			if err != nil {
				t.Errorf("kubectl apply of %s: %v", file, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("kubectl apply of %s: error %v, want %s", file, err, message)
		}
	}
}

// findServer reads the version of the API server under test.
func findServer() error {
	info, err := client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	if server, err = version.ParseGeneric(info.GitVersion); err != nil {
		return fmt.Errorf("version of the API server: %w", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestTableAgreesWithModules(t *testing.T) {
	for _, tool := range All() {
		t.Run(tool.Name, func(t *testing.T) {
			dir, err := tool.ModuleDir()
			if err != nil {
				t.Fatal(err)
			}
			mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			required := regexp.MustCompile(`(?m)^(require)?\s+` + regexp.QuoteMeta(tool.Module+" "+tool.Version) + `( //.*)?$`)
			if !required.Match(mod) {
				t.Errorf("%s/go.mod does not require %s %s", tool.Dir, tool.Module, tool.Version)
			}
			if listed := regexp.MustCompile(`(?m)^(tool)?\s+` + regexp.QuoteMeta(tool.Package) + `$`); !listed.Match(mod) {
				t.Errorf("%s/go.mod has no tool line for %s", tool.Dir, tool.Package)
			}
		})
	}
}

func TestKubernetesStagingVersions(t *testing.T) {
	dir, err := Tool{Dir: "kubernetes"}.ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	// Kubernetes v1.x.y publishes its staging modules as v0.x.y.
	want := "v0." + strings.TrimPrefix(kubernetesVersion, "v1.")
	replaces := regexp.MustCompile(`=> (k8s\.io/\S+) (\S+)`).FindAllStringSubmatch(string(mod), -1)
	if len(replaces) == 0 {
		t.Fatal("kubernetes/go.mod replaces no staging module")
	}
	for _, r := range replaces {
		if r[2] != want {
			t.Errorf("kubernetes/go.mod replaces %s with %s, want %s", r[1], r[2], want)
		}
	}
}

func TestPath(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("FSUSER_CACHE", cache)

	_, err := Path("etcd")
	if err == nil || !strings.HasSuffix(err.Error(), "run: make control-plane") {
		t.Errorf("Path of a tool that is not built: error %v, want one that names the make target", err)
	}

	want := filepath.Join(cache, "bin", "etcd-"+etcdVersion, "etcd")
	if err := os.MkdirAll(filepath.Dir(want), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Path("etcd"); err != nil || got != want {
		t.Errorf("Path of a built tool = %q, %v, want %q", got, err, want)
	}

	if _, err := Path("no-such-tool"); err == nil || !strings.Contains(err.Error(), "kube-apiserver, etcd") {
		t.Errorf("Path of an unknown tool: error %v, want one that lists the tools", err)
	}
}

func TestBinaryIsInTheRepository(t *testing.T) {
	t.Setenv("FSUSER_CACHE", "")
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	tool, err := Lookup("kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(root, ".cache", "bin", "kube-apiserver-"+kubernetesVersion, "kube-apiserver")
	if got, err := tool.Binary(); err != nil || got != want {
		t.Errorf("Binary() = %q, %v, want %q", got, err, want)
	}
}

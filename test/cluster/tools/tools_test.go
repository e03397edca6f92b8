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
	for _, k := range Versions() {
		for _, tool := range All(k) {
			t.Run(tool.Name+" "+tool.Version, func(t *testing.T) {
				mod := readModule(t, tool)
				required := regexp.MustCompile(`(?m)^(require)?\s+` + regexp.QuoteMeta(tool.Module+" "+tool.Version) + `( //.*)?$`)
				if !required.MatchString(mod) {
					t.Errorf("%s/go.mod does not require %s %s", tool.Dir, tool.Module, tool.Version)
				}
				if listed := regexp.MustCompile(`(?m)^(tool)?\s+` + regexp.QuoteMeta(tool.Package) +
					`$`); !listed.MatchString(mod) {
					t.Errorf("%s/go.mod has no tool line for %s", tool.Dir, tool.Package)
				}
			})
		}
	}
}

func readModule(t *testing.T, tool Tool) string {
	t.Helper()
	dir, err := tool.ModuleDir()
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	return string(mod)
}

func TestKubernetesStagingVersions(t *testing.T) {
	for _, k := range Versions() {
		// Kubernetes v1.x.y publishes its staging modules as v0.x.y.
		want := "v0." + strings.TrimPrefix(k.Version, "v1.")
		replaces := regexp.MustCompile(`=> (k8s\.io/\S+) (\S+)`).FindAllStringSubmatch(readModule(t, Tool{Dir: k.dir()}), -1)
		if len(replaces) == 0 {
			t.Errorf("%s/go.mod replaces no staging module", k.dir())
		}
		for _, r := range replaces {
			if r[2] != want {
				t.Errorf("%s/go.mod replaces %s with %s, want %s", k.dir(), r[1], r[2], want)
			}
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	for value, want := range map[string]string{"": Newest().Version, "1.35": "v1.35.4", "1.37": "v1.37.2"} {
		t.Setenv(KubernetesEnv, value)
		if k, err := FromEnvironment(); err != nil || k.Version != want {
			t.Errorf("%s=%s chooses %v, error %v, want %s", KubernetesEnv, value, k, err, want)
		}
	}
	for _, value := range []string{"1.34", "1.3", "v1.37", "1.37.2"} {
		t.Setenv(KubernetesEnv, value)
		if k, err := FromEnvironment(); err == nil || !strings.Contains(err.Error(), "want one of 1.35, 1.36, 1.37") {
			t.Errorf("%s=%s chooses %v, error %v, want one that lists the versions", KubernetesEnv, value, k, err)
		}
	}
}

func TestPath(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("FSUSER_CACHE", cache)

	_, err := Path(Newest(), "etcd")
	if err == nil || !strings.HasSuffix(err.Error(), "run: make control-plane") {
		t.Errorf("Path of a tool that is not built: error %v, want one that names the make target", err)
	}

	_, err = Path(Versions()[0], "kubelet")
	if err == nil || !strings.HasSuffix(err.Error(), "run: make cluster-up KUBERNETES=1.35") {
		t.Errorf("Path of a tool that is not built: error %v, want one that names the version", err)
	}

	want := filepath.Join(cache, "bin", "etcd-"+etcdVersion, "etcd")
	if err := os.MkdirAll(filepath.Dir(want), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Path(Newest(), "etcd"); err != nil || got != want {
		t.Errorf("Path of a built tool = %q, %v, want %q", got, err, want)
	}

	if _, err := Path(Newest(), "no-such-tool"); err == nil || !strings.Contains(err.Error(), "kube-apiserver, etcd") {
		t.Errorf("Path of an unknown tool: error %v, want one that lists the tools", err)
	}
}

func TestBinaryIsInTheRepository(t *testing.T) {
	t.Setenv("FSUSER_CACHE", "")
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	tool, err := Lookup(Newest(), "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(root, ".cache", "bin", "kube-apiserver-"+Newest().Version, "kube-apiserver")
	if got, err := tool.Binary(); err != nil || got != want {
		t.Errorf("Binary() = %q, %v, want %q", got, err, want)
	}
}

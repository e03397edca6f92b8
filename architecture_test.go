// SPDX-License-Identifier: Apache-2.0

// Package architecture has no code, only the test that keeps imports pointing one way (docs/architecture.md).
package architecture

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fsuser-csi/fsuser-csi/"

type goPackage struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports", "./cmd/...", "./pkg/...", "./internal/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]goPackage{}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

func TestImportsPointOneWay(t *testing.T) {
	allowed := map[string][]string{
		"cmd/fsuser-csi":   {"internal/kubelet", "pkg/attributes", "pkg/confine", "pkg/convert", "pkg/driver", "pkg/event", "pkg/lint", "pkg/manifest", "pkg/record", "pkg/source", "pkg/tmpfs", "pkg/volume"},
		"pkg/driver":       {"pkg/attributes", "pkg/source", "pkg/tmpfs", "pkg/volume"},
		"pkg/volume":       {"pkg/attributes", "pkg/event", "pkg/projector", "pkg/record", "pkg/source", "pkg/tmpfs"},
		"pkg/lint":         {"pkg/attributes", "pkg/manifest", "pkg/source"},
		"pkg/convert":      {"pkg/attributes", "pkg/manifest", "pkg/source"},
		"pkg/manifest":     {},
		"pkg/attributes":   {},
		"pkg/source":       {},
		"pkg/event":        {},
		"pkg/confine":      {},
		"pkg/projector":    {},
		"pkg/tmpfs":        {},
		"pkg/record":       {},
		"internal/kubelet": {},
		"internal/testkit": {"internal/kubelet"},
	}
	for name, p := range packages(t) {
		rule, known := allowed[name]
		if !known {
			t.Errorf("package %s is new: give it its place in this test and in docs/architecture.md", name)
		}
		for _, path := range p.Imports {
			if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(rule, ours) {
				t.Errorf("%s imports %s, which it may not", name, ours)
			}
		}
	}
}

// Each of these has one owner; whoever else needs it asks the owner.
func TestLibrariesHaveOneOwner(t *testing.T) {
	owners := map[string][]string{
		"google.golang.org/grpc/codes":                  {"pkg/driver"},
		"google.golang.org/grpc/status":                 {"pkg/driver"},
		"k8s.io/client-go/tools/cache":                  {}, // a watch would take twice the memory (docs/decisions/0005-no-reflector.md)
		"k8s.io/mount-utils":                            {"pkg/tmpfs"},
		"github.com/spf13/cobra":                        {"cmd/fsuser-csi"},
		"os/exec":                                       {"cmd/fsuser-csi", "internal/testkit"}, // the demo only: the node agent runs no program
		"github.com/elastic/go-seccomp-bpf":             {"pkg/confine"},
		"kernel.org/pub/linux/libs/security/libcap/cap": {"pkg/confine"},
		"k8s.io/client-go/kubernetes":                   {}, // its scheme would double the program
		"k8s.io/kubernetes":                             {},
		"github.com/fsnotify/fsnotify":                  {"pkg/source"},
		"sigs.k8s.io/yaml":                              {"pkg/source"},
		"go.yaml.in/yaml/v3":                            {"pkg/manifest"}, // all others ask it where a value is
		"k8s.io/client-go/util/workqueue":               {"pkg/volume"},
		"github.com/kubernetes-csi/csi-test/v5":         {},
	}
	for name, p := range packages(t) {
		for _, path := range p.Imports {
			if rule, owned := owners[path]; owned && !slices.Contains(rule, name) {
				t.Errorf("%s imports %s, which belongs to %q", name, path, rule)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for name, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("package %s has no doc comment", name)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package repository has tests of the repository itself: its imports, its documents, its licences and its build.
package repository

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
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
		"cmd/fsuser-csi": {"pkg/access", "pkg/confine", "pkg/driver", "pkg/event", "pkg/record", "pkg/source",
			"pkg/status", "pkg/tmpfs", "pkg/volume"},
		"cmd/kubectl-fsuser": {"pkg/attributes", "pkg/convert", "pkg/lint", "pkg/manifest", "pkg/status"},
		"pkg/driver":         {"internal/failpoint", "pkg/attributes", "pkg/source", "pkg/tmpfs", "pkg/volume"},
		"pkg/volume": {"internal/failpoint", "internal/text", "pkg/attributes", "pkg/event", "pkg/projector", "pkg/record",
			"pkg/source", "pkg/status", "pkg/tmpfs"},
		"pkg/lint":           {"pkg/attributes", "pkg/manifest"},
		"pkg/convert":        {"pkg/attributes", "pkg/manifest"},
		"pkg/manifest":       {},
		"pkg/attributes":     {"internal/text"},
		"pkg/status":         {},
		"pkg/source":         {"internal/apierror", "internal/failpoint", "internal/text", "pkg/attributes"},
		"pkg/event":          {"internal/apierror", "internal/text"},
		"pkg/access":         {"pkg/event", "pkg/source", "pkg/status"},
		"pkg/confine":        {},
		"pkg/projector":      {"internal/failpoint"},
		"pkg/tmpfs":          {"internal/failpoint"},
		"pkg/record":         {"internal/failpoint"},
		"internal/apierror":  {},
		"internal/failpoint": {},
		"internal/kubelet":   {},
		"internal/text":      {},
		"internal/testkit":   {"internal/kubelet"},
		// The tests use this package, and the program that writes docs/reliability.md.
		"internal/reliability":      {},
		"internal/reliability/page": {"internal/reliability"},
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

// Each of these libraries has owners. Other packages must call the owners instead.
func TestLibrariesHaveOwners(t *testing.T) {
	owners := map[string][]string{
		// The driver writes the codes; the kubelet of the tests reads them.
		"google.golang.org/grpc/codes":  {"pkg/driver", "internal/kubelet"},
		"google.golang.org/grpc/status": {"pkg/driver", "internal/kubelet"},
		// A watch would take twice the memory (docs/decisions/0005-no-reflector.md).
		"k8s.io/client-go/tools/cache":                  {},
		"k8s.io/mount-utils":                            {"pkg/tmpfs"},
		"github.com/spf13/cobra":                        {"cmd/fsuser-csi", "cmd/kubectl-fsuser"},
		"os/exec":                                       {"internal/testkit"}, // The agent executes no programs.
		"github.com/elastic/go-seccomp-bpf":             {"pkg/confine"},
		"kernel.org/pub/linux/libs/security/libcap/cap": {"pkg/confine"},
		"k8s.io/client-go/kubernetes":                   {}, // Its scheme would double the size of the program.
		"k8s.io/kubernetes":                             {},
		"github.com/fsnotify/fsnotify":                  {"pkg/source"},
		"sigs.k8s.io/yaml":                              {}, // for tests
		"go.yaml.in/yaml/v2":                            {"pkg/manifest"},
		"go.yaml.in/yaml/v3":                            {"pkg/manifest"}, // It has the positions of values.
		"k8s.io/client-go/util/workqueue":               {"pkg/volume"},
		"github.com/kubernetes-csi/csi-test/v5":         {},
		"golang.org/x/sys/unix": {"cmd/fsuser-csi", "pkg/confine", "pkg/driver", "pkg/projector", "pkg/record", "pkg/tmpfs",
			"internal/kubelet", "internal/reliability", "internal/testkit"}, // the kernel
	}
	for name, p := range packages(t) {
		for _, path := range p.Imports {
			if rule, owned := owners[path]; owned && !slices.Contains(rule, name) {
				t.Errorf("%s imports %s, which belongs to %q", name, path, rule)
			}
		}
	}
}

// The agent executes no programs, reads YAML only with client-go, and does not contain a fake kubelet.
func TestTheAgentIsAnAgentOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-tags", "grpcnotrace", "-json=ImportPath,Imports",
		"./cmd/fsuser-csi").Output()
	if err != nil {
		t.Fatal(err)
	}
	// Packages of the modules k8s.io and sigs.k8s.io import these themselves: client-go for kubeconfig files and for
	// credential plugins, and mount-utils to run mount(8), which the agent never calls.
	const theirs = "k8s.io/"
	seen := map[string]bool{}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen[p.ImportPath] = true
		for _, path := range p.Imports {
			forbidden := path == "os/exec" || strings.Contains(path, "yaml") && path != "k8s.io/apimachinery/pkg/util/yaml"
			if forbidden && !strings.Contains(p.ImportPath, theirs) {
				t.Errorf("%s imports %s", p.ImportPath, path)
			}
		}
	}
	for _, p := range []string{"internal/kubelet", "pkg/manifest", "pkg/lint", "pkg/convert"} {
		if seen[module+p] {
			t.Errorf("the agent has package %s in it", p)
		}
	}
	if !seen[module+"pkg/volume"] {
		t.Fatal("the list of packages is not the agent's")
	}
}

// A wall clock may only be used for display: in names of generations, whose order has no meaning, in Events, and in the
// status. Everything else depends on elapsed time, which time.Time contains as a monotonic reading until a method
// removes it. So a jump of the clock has no effect on the driver itself. Only the API server's certificate and the
// driver's token may be invalid while the clock is wrong, which is an outage (F-02).
func TestNothingGoesByTheClock(t *testing.T) {
	// These methods remove the monotonic reading, or read more than elapsed time.
	wall := []string{"Unix", "UnixMilli", "UnixMicro", "UnixNano", "UTC", "Local", "In", "Round", "Truncate", "Format",
		"AppendFormat", "Date", "Clock",
		"Hour", "Minute", "Second", "YearDay", "Weekday", "Parse", "ParseInLocation", "ModTime", "WithDeadline",
		"SetDeadline"}
	allowed := []string{
		// Rounds a duration, to print it.
		"pkg/status/status.go Round",
		// These make and read the names of generations.
		"pkg/projector/projector.go Format", "pkg/projector/projector.go UTC", "pkg/projector/projector.go Parse",
	}
	seen := map[string]bool{}
	files := 0
	for name, p := range packages(t) {
		if strings.HasPrefix(name, "internal/") {
			continue // These are for tests and the demo.
		}
		for _, file := range p.GoFiles {
			path := filepath.Join(name, file)
			parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files++
			imported := map[string]bool{}
			for _, i := range parsed.Imports {
				imported[strings.Trim(i.Path.Value, `"`)] = true
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				selector, ok := call.Fun.(*ast.SelectorExpr)
				if ok && imported["time"] && slices.Contains(wall, selector.Sel.Name) {
					use := path + " " + selector.Sel.Name
					seen[use] = true
					if !slices.Contains(allowed, use) {
						t.Errorf("%s goes by the clock, which can jump: use how much time has passed", use)
					}
				}
				return true
			})
		}
	}
	for _, use := range allowed {
		if !seen[use] {
			t.Errorf("%s is allowed and not there", use)
		}
	}
	reliability.Shown(t, "F-25",
		fmt.Sprintf("%d files of source: none asks a clock for more than how much time has passed", files))
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for name, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("package %s has no doc comment", name)
		}
	}
}

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
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles", "./cmd/...", "./pkg/...", "./internal/...")
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

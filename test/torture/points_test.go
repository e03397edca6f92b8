// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const repository = "../.."

// point is a failpoint in the driver's source.
type point struct {
	name string
	// fails means that its step can return an error.
	fails bool
}

// points returns all failpoints in the source.
func points(t *testing.T) []point {
	t.Helper()
	var all []point
	seen := map[string]token.Position{}
	files := token.NewFileSet()
	for _, dir := range []string{"cmd", "pkg"} {
		err := filepath.WalkDir(filepath.Join(repository, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				function, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if pkg, ok := function.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
					return true
				}
				literal, ok := call.Args[0].(*ast.BasicLit)
				if !ok {
					t.Fatalf("%v: the name of a failpoint must be written out", files.Position(call.Pos()))
				}
				name, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				if other, taken := seen[name]; taken {
					t.Errorf("failpoint %s is at %v and at %v; each needs a name of its own", name, other, files.Position(call.Pos()))
				}
				seen[name] = files.Position(call.Pos())
				all = append(all, point{name, function.Sel.Name == "Error"})
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func noFailpoints(t *testing.T, c *cluster) {
	all := points(t)
	if len(all) < 20 {
		t.Fatalf("only %d failpoints were found", len(all))
	}
	plain, errPlain := os.ReadFile(c.plain)
	with, errWith := os.ReadFile(c.binary)
	if err := errors.Join(errPlain, errWith); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(all, point{name: "FSUSER_FAILPOINTS"}) {
		if bytes.Contains(plain, []byte(p.name)) {
			t.Errorf("the driver has %s in it", p.name)
		}
		if !bytes.Contains(with, []byte(p.name)) {
			t.Errorf("the driver with failpoints has not %s in it", p.name)
		}
	}
}

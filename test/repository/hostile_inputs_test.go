// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	inputID = regexp.MustCompile(`\bH-[0-9]{3}\b`)
	// inputRow is a row of a table in docs/hostile-inputs.md: id, input, answer.
	inputRow = regexp.MustCompile(`(?m)^\| (H-[0-9]{3}) \| (.+) \| (.+) \|$`)
)

// TestEveryHostileInputHasATest compares docs/hostile-inputs.md with the tests.
func TestEveryHostileInputHasATest(t *testing.T) {
	page, err := os.ReadFile("docs/hostile-inputs.md")
	if err != nil {
		t.Fatal(err)
	}
	tested := namedByTests(t)
	rows := map[string]bool{}
	last := ""
	for _, row := range inputRow.FindAllStringSubmatch(string(page), -1) {
		id, answer := row[1], row[3]
		if id <= last {
			t.Errorf("%s comes after %s: ids are unique and in order", id, last)
		}
		last, rows[id] = id, true
		if len(tested[id]) == 0 && !strings.HasPrefix(answer, "does not apply: ") {
			t.Errorf("no test names %s; show that the driver answers so, or say in its row why it does not apply", id)
		}
	}
	if len(rows) < 80 {
		t.Errorf("only %d rows were read", len(rows))
	}
	for id, tests := range tested {
		if !rows[id] {
			t.Errorf("%s in %q has no row in docs/hostile-inputs.md", id, tests)
		}
	}
}

// namedByTests returns the ids, with the test functions (those with a testing.T, B, F or TB) that name them.
func namedByTests(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != "." && strings.HasPrefix(entry.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !inputID.Match(source) {
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			function, ok := d.(*ast.FuncDecl)
			if !ok || !isOfTests(function) {
				continue
			}
			start := function.Pos()
			if function.Doc != nil {
				start = function.Doc.Pos()
			}
			text := source[files.Position(start).Offset:files.Position(function.End()).Offset]
			for _, id := range inputID.FindAllString(string(text), -1) {
				found[id] = append(found[id], path+" "+function.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func isOfTests(function *ast.FuncDecl) bool {
	for _, parameter := range function.Type.Params.List {
		kind := parameter.Type
		if pointer, ok := kind.(*ast.StarExpr); ok {
			kind = pointer.X
		}
		if selector, ok := kind.(*ast.SelectorExpr); ok {
			if pkg, ok := selector.X.(*ast.Ident); ok && pkg.Name == "testing" {
				return true
			}
		}
	}
	return false
}

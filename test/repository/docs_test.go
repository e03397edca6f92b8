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
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestCompatibilityNamesItsTests checks docs/compatibility.md against the tests: each line of its tables ends with
// names of test functions, or of comparisons of the end-to-end tests. The page names all comparisons, and all
// differences that they allow.
func TestCompatibilityNamesItsTests(t *testing.T) {
	functions := testFunctions(t)
	comparisons, differences := comparisons(t)
	page, err := os.ReadFile("docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	inBackticks := regexp.MustCompile("`([^`]+)`")
	var rows, named []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 || strings.Trim(cells[1], "- ") == "" {
			continue // no table, or its head, or the line below
		}
		row := strings.TrimSpace(cells[1])
		rows = append(rows, row)
		names := inBackticks.FindAllStringSubmatch(cells[len(cells)-2], -1)
		if len(names) == 0 {
			t.Errorf("no test is named for %q", row)
		}
		for _, name := range names {
			named = append(named, name[1])
			if !slices.Contains(functions, name[1]) && !slices.Contains(comparisons, name[1]) {
				t.Errorf("%q is shown by %q, which is no function of a test and no comparison", row, name[1])
			}
		}
	}
	if len(rows) < 40 || len(comparisons) < 20 {
		t.Errorf("%d rows and %d comparisons were found; has their form changed?", len(rows), len(comparisons))
	}
	for _, name := range comparisons {
		if !slices.Contains(named, name) {
			t.Errorf("the comparison %q is missing in the page", name)
		}
	}
	for _, row := range differences {
		if !slices.Contains(rows, row) {
			t.Errorf("the comparisons allow the difference %q, which is no row of the page", row)
		}
	}
}

// testFunctions returns the names of all functions in test files.
func testFunctions(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir // the cache
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range file.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok {
				names = append(names, f.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// comparisons returns the names of the end-to-end tests' comparisons, and the rows of their differences.
func comparisons(t *testing.T) (names, rows []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "test/e2e/compare_cases_test.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	text := func(e ast.Expr) string {
		literal, ok := e.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return ""
		}
		s, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "name" {
				names = append(names, text(n.Value))
			}
		case *ast.CompositeLit:
			if array, ok := n.Type.(*ast.ArrayType); ok {
				if element, ok := array.Elt.(*ast.Ident); ok && element.Name == "difference" {
					for _, e := range n.Elts {
						rows = append(rows, text(e.(*ast.CompositeLit).Elts[0]))
					}
				}
			}
		}
		return true
	})
	if slices.Contains(names, "") || slices.Contains(rows, "") || len(rows) == 0 {
		t.Fatalf("names %q and rows %q: not all are strings that can be read here", names, rows)
	}
	return names, rows
}

// TestDocsNameMetricsThatExist compares the names of metrics in all pages, in the alerts and in the dashboard with
// docs/metrics.md, which a test compares with a driver.
func TestDocsNameMetricsThatExist(t *testing.T) {
	page, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var exist []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (\\w+)").FindAllSubmatch(page, -1) {
		exist = append(exist, string(row[1]))
		if string(row[2]) == "histogram" {
			exist = append(exist, string(row[1])+"_bucket", string(row[1])+"_count", string(row[1])+"_sum")
		}
	}
	var pages []string
	for _, pattern := range []string{"docs/*.md", "docs/alerts/*.md", "deploy/chart/files/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		pages = append(pages, files...)
	}
	found := 0
	name := regexp.MustCompile(`\b(fsuser|rest_client)_[a-z_]+\b`)
	for _, file := range append(pages, "README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "deploy/README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, metric := range name.FindAllString(string(text), -1) {
			found++
			if !slices.Contains(exist, metric) {
				t.Errorf("%s names the metric %s, which docs/metrics.md does not have", file, metric)
			}
		}
	}
	if len(exist) < 20 || found < 40 {
		t.Errorf("%d metrics and %d names of metrics were found; has their form changed?", len(exist), found)
	}
}

var (
	codeBlock = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	heading   = regexp.MustCompile(`(?m)^#+ (.+)$`)
	link      = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	notInSlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// TestLinks follows each relative link of a page to its file, and to its heading as GitHub makes anchors.
func TestLinks(t *testing.T) {
	text := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			content, err := os.ReadFile(path)
			text[path] = codeBlock.ReplaceAllString(string(content), "")
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for page, content := range text {
		for _, m := range link.FindAllStringSubmatch(content, -1) {
			if strings.Contains(m[1], ":") {
				continue // an address
			}
			found++
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: a link leads to %s, which does not exist", page, target)
			} else if m[2] != "" && !slices.Contains(anchors(text[target]), m[2]) {
				t.Errorf("%s: a link leads to %s%s, and there is no such heading", page, target, m[2])
			}
		}
	}
	if len(text) < 40 || found < 200 {
		t.Errorf("%d links in %d pages were found; has their form changed?", found, len(text))
	}
}

// anchors are the anchors of the headings of a page.
func anchors(content string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(content, -1) {
		slug := strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		all = append(all, "#"+slug)
	}
	return all
}

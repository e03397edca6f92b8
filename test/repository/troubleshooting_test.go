// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestTroubleshootingHasEveryMessage compares docs/troubleshooting.md with the messages in the code and in the chart.
// The text in backticks in the first column of a table is a part of a message, where "..." stands for what differs from
// case to case. Each message has such a part in the page, and each part is in a text of the code. The exception is a
// section whose title says that the messages are of other programs.
func TestTroubleshootingHasEveryMessage(t *testing.T) {
	page, err := os.ReadFile("docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	entries := entriesOf(string(page))
	texts := textsOfChart(t)
	for _, pattern := range messageFiles {
		texts = append(texts, textsOfCode(t, pattern)...)
	}
	messages := 0
	for _, m := range texts {
		if !m.isMessage {
			continue
		}
		messages++
		if !slices.ContainsFunc(entries, func(entry string) bool { return strings.Contains(m.text, entry) }) {
			t.Errorf("%s: no entry of the page is a part of the message %q", m.place, m.text)
		}
	}
	for _, entry := range entries {
		if !slices.ContainsFunc(texts, func(m text) bool { return strings.Contains(m.text, entry) }) {
			t.Errorf("the entry %q is in no message of the driver, the plugin or the chart", entry)
		}
	}
	if len(entries) < 150 || messages < 170 {
		t.Errorf("%d entries and %d messages were found; has their form changed?", len(entries), messages)
	}
}

// messageFiles are the files whose messages reach users: in Events, in the status, in the last line of a driver that
// does not start, and in the output of kubectl fsuser check.
var messageFiles = []string{
	"pkg/access/*.go", "pkg/attributes/*.go", "pkg/confine/*.go", "pkg/driver/*.go", "pkg/projector/*.go",
	"pkg/record/*.go", "pkg/source/*.go", "pkg/tmpfs/*.go", "pkg/volume/*.go", "cmd/fsuser-csi/*.go",
	"cmd/kubectl-fsuser/check*.go", "cmd/kubectl-fsuser/cluster.go",
}

// entriesOf are the parts of messages that the page has.
func entriesOf(page string) (entries []string) {
	inBackticks := regexp.MustCompile("`([^`]+)`")
	for _, section := range strings.Split(page, "\n## ") {
		if title, _, _ := strings.Cut(section, "\n"); strings.HasSuffix(title, "of other programs") {
			continue
		}
		for line := range strings.Lines(section) {
			cells := strings.Split(line, " | ")
			if !strings.HasPrefix(line, "| ") || len(cells) < 2 {
				continue
			}
			for _, m := range inBackticks.FindAllStringSubmatch(cells[0], -1) {
				entries = append(entries, m[1])
			}
		}
	}
	return entries
}

// text is a text of the code, with "..." for its variable parts.
type text struct {
	place, text string
	isMessage   bool
}

// textsOfChart are the arguments of fail in the chart's templates.
func textsOfChart(t *testing.T) (texts []text) {
	t.Helper()
	files, err := filepath.Glob("deploy/chart/templates/*.*")
	if err != nil {
		t.Fatal(err)
	}
	fail := regexp.MustCompile(`\bfail (?:\(printf? )?"([^"]+)"`)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		calls := fail.FindAllSubmatch(content, -1)
		if len(calls) != strings.Count(string(content), "{{- fail ") {
			t.Errorf("%s: not each call of fail has a text that can be read here", file)
		}
		for _, m := range calls {
			texts = append(texts, text{file, withoutVerbs(string(m[1])), true})
		}
	}
	return texts
}

// textsOfCode are the strings in files of Go, except those of tests, of the log, and of the help of commands and
// metrics.
func textsOfCode(t *testing.T, pattern string) (texts []text) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") || filepath.Base(path) == "metrics.go" {
			continue
		}
		positions := token.NewFileSet()
		file, err := parser.ParseFile(positions, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		recordsEvents := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
			return strings.HasSuffix(i.Path.Value, `/pkg/event"`)
		})
		ast.Inspect(file, func(n ast.Node) bool {
			if notForUsers(n) {
				return false
			}
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			s, is := stringOf(e)
			place := positions.Position(e.Pos()).String()
			if is {
				isEvent := recordsEvents && camelCase.MatchString(s)
				texts = append(texts, text{place, withoutVerbs(s), isEvent || isMessage(s)})
			} else if s, is = stringOf(argumentOfErrorsNew(e)); is {
				texts = append(texts, text{place, s, s != notShown})
			}
			return !is
		})
	}
	return texts
}

// notForUsers reports whether a node has no messages: it is of the log, of a metric or of a command's help, compares
// texts, or belongs to a check of kubectl fsuser check that succeeds or could not be made.
func notForUsers(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ImportSpec, *ast.StructType:
		return true
	case *ast.KeyValueExpr:
		key, ok := n.Key.(*ast.Ident)
		return ok && slices.Contains([]string{"Use", "Short", "Long"}, key.Name)
	case *ast.CallExpr:
		switch f := n.Fun.(type) {
		case *ast.Ident:
			if f.Name == "isNot" {
				n.Args = n.Args[:1] // the second one is the remedy
			}
			return f.Name == "isOK" || f.Name == "notKnown"
		case *ast.SelectorExpr:
			of, _ := f.X.(*ast.Ident)
			if of != nil && of.Name == "status" {
				return false // status.Error makes an error of gRPC
			}
			return of != nil && slices.Contains([]string{"klog", "prometheus", "strings", "regexp"}, of.Name) ||
				slices.Contains([]string{"Info", "InfoS", "Error", "ErrorS", "Fprintln"}, f.Sel.Name) ||
				strings.HasSuffix(f.Sel.Name, "Var") || strings.HasSuffix(f.Sel.Name, "VarP")
		}
	}
	return false
}

// stringOf is the value of a string literal or of a sum with one, with "..." for the summands that are no literals.
func stringOf(e ast.Expr) (s string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, err := strconv.Unquote(e.Value)
			return s, err == nil
		}
	case *ast.BinaryExpr:
		left, isLeft := stringOf(e.X)
		right, isRight := stringOf(e.Y)
		if e.Op == token.ADD && (isLeft || isRight) {
			return left + right, true
		}
	}
	return "...", false
}

// argumentOfErrorsNew is the argument of a call of errors.New, and nil for any other expression.
func argumentOfErrorsNew(e ast.Expr) ast.Expr {
	if call, ok := e.(*ast.CallExpr); ok {
		if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "New" && len(call.Args) == 1 {
			if of, ok := f.X.(*ast.Ident); ok && of.Name == "errors" {
				return call.Args[0]
			}
		}
	}
	return nil
}

// notShown is an error that ends the watch of an object, and no user's request.
const notShown = "the object is immutable"

var (
	verb      = regexp.MustCompile(`%(\[\d+\])?[-+#. \d]*[a-zA-Z]`)
	word      = regexp.MustCompile(`(^|[\s(])[A-Za-z,]{2,}`)
	camelCase = regexp.MustCompile(`^([A-Z][a-z]+){2,}$`)
)

func withoutVerbs(format string) string {
	return strings.ReplaceAll(verb.ReplaceAllString(format, "..."), "%%", "%")
}

// isMessage reports whether a text has at least three words. A text that ends with an error only says what failed: the
// error is the message.
func isMessage(format string) bool {
	return !strings.HasSuffix(format, ": %w") && len(word.FindAllString(format, -1)) > 2
}

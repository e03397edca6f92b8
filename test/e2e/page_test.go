// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The pages whose commands the tests run.
const (
	readme        = "../../README.md"
	installPage   = "../../deploy/README.md"
	platformsPage = "../../docs/platforms.md"
	reloadPage    = "../../docs/reload.md"
	tutorialPage  = "../../docs/tutorial.md"
)

// page is a document for users.
type page struct {
	path   string
	blocks []block
	// ran are the commands that the tests have run.
	ran map[string]bool
}

// block is a block of code. Blocks of commands have no language.
type block struct{ section, language, text string }

func readPage(t *testing.T, path string) *page {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &page{path: path, ran: map[string]bool{}}
	var section, indent string
	var open *block
	for line := range strings.Lines(string(content)) {
		text := strings.TrimLeft(line, " ")
		language, fence := strings.CutPrefix(strings.TrimSpace(text), "```")
		switch {
		case fence && open == nil:
			open, indent = &block{section: section, language: language}, line[:len(line)-len(text)]
		case fence:
			p.blocks, open = append(p.blocks, *open), nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent)
		case strings.HasPrefix(line, "#"):
			section = strings.TrimSpace(strings.TrimLeft(line, "#"))
		}
	}
	return p
}

// section returns the part of the page below a heading.
func (p *page) section(heading string) *page {
	blocks := slices.DeleteFunc(slices.Clone(p.blocks), func(b block) bool { return b.section != heading })
	return &page{path: p.path + " (" + heading + ")", blocks: blocks, ran: p.ran}
}

// commands returns all commands of the page.
func (p *page) commands() (all []string) {
	for _, b := range p.blocks {
		if b.language == "" {
			all = append(all, commandsOf(b.text)...)
		}
	}
	return all
}

// commandsOf returns the commands of a block without its comments. A command ends with its line, unless the line ends
// with a backslash. Each space between two words becomes one blank, as the shell reads it.
func commandsOf(text string) (all []string) {
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// command returns the one command of the page that contains these words, or consists of them.
func (p *page) command(t *testing.T, words string) string {
	t.Helper()
	all := p.commands()
	if slices.Contains(all, words) {
		return words
	}
	found := slices.DeleteFunc(all, func(c string) bool { return !strings.Contains(c, words) })
	if slices.Sort(found); len(slices.Compact(found)) != 1 {
		t.Fatalf("%s: the commands with %q are %q, want one", p.path, words, found)
	}
	return found[0]
}

// example returns the one YAML example of the page that contains these words.
func (p *page) example(t *testing.T, words string) string {
	t.Helper()
	found := slices.DeleteFunc(slices.Clone(p.blocks),
		func(b block) bool { return b.language != "yaml" || !strings.Contains(b.text, words) })
	if len(found) != 1 {
		t.Fatalf("%s has %d YAML examples with %q, want one", p.path, len(found), words)
	}
	return found[0].text
}

// allRan checks that the tests have run each command of the page, except the commands that contain one of these words.
// The words have to be of commands that the tests have not run.
func (p *page) allRan(t *testing.T, except ...string) {
	t.Helper()
	excused := map[string]bool{}
	for _, c := range p.commands() {
		if p.ran[c] {
			continue
		}
		i := slices.IndexFunc(except, func(words string) bool { return strings.Contains(c, words) })
		if i < 0 {
			t.Errorf("%s: no test has run the command: %s", p.path, c)
			continue
		}
		excused[except[i]] = true
	}
	for _, words := range except {
		if !excused[words] {
			t.Errorf("%s has no command with %q that the tests have not run", p.path, words)
		}
	}
}

// checkout is a folder with a copy of the folder deploy, in which the commands of the pages run.
type checkout struct {
	t   *testing.T
	dir string
}

func newCheckout(t *testing.T) checkout {
	t.Helper()
	c := checkout{t, t.TempDir()}
	if err := os.CopyFS(filepath.Join(c.dir, "deploy"), os.DirFS("../../deploy")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			events, _ := kubectl(context.Background(), "", "-n", driverNamespace, "get", "events")
			t.Logf("events of the driver's namespace:\n%s", tail(events, 20))
		}
	})
	return c
}

// write writes a file of the checkout.
func (c checkout) write(name, content string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// run runs the one command of the page that contains these words, and returns its output. NAMESPACE of the command
// becomes the namespace.
func (c checkout) run(p *page, words, namespace string) string {
	c.t.Helper()
	command := p.command(c.t, words)
	p.ran[command] = true
	begin := time.Now()
	out := shell(c.t, c.dir, strings.ReplaceAll(command, "NAMESPACE", namespace))
	c.t.Logf("%4.1f s  %s", time.Since(begin).Seconds(), command)
	return out
}

// shell runs a command in a folder, and returns its standard output.
func shell(t *testing.T, dir, command string) string {
	t.Helper()
	ctx, cancel := within(t, soon, command)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", command)
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, out, &stderr)
	}
	return string(out)
}

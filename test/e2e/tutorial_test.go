// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// untilKubeletsRefresh is the output of a container before kubelet's refresh, which takes at most 90 seconds.
const untilKubeletsRefresh = "/kubernetes/key:first"

// statusLine matches a line of the status. The columns NODE, VERSION and REFRESHED differ from run to run.
var statusLine = regexp.MustCompile(`\S+ (tutorial/app .+) \d+ \S+ current`)

// testTutorial runs the commands of docs/tutorial.md that use the driver, and compares their output with the page.
// A block of commands without a block of output succeeds. The commands of the others run again until they print the
// output.
func testTutorial(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(buildPlugin(t), filepath.Join(dir, "bin", "kubectl-fsuser")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shell(t, dir, "kubectl delete namespace tutorial --ignore-not-found") })
	p := readPage(t, tutorialPage)
	for _, heading := range []string{"3. A Secret, twice", "4. Owner and mode", "5. A change", "6. A mistake"} {
		blocks := p.section(heading).blocks
		if len(blocks) == 0 {
			t.Fatalf("%s has no section %q with commands", p.path, heading)
		}
		for i, b := range blocks {
			switch {
			case b.language != "":
			case i+1 < len(blocks) && blocks[i+1].language == "text":
				prints(t, dir, b.text, blocks[i+1].text)
			default:
				shell(t, dir, b.text)
			}
		}
	}
}

// prints runs commands until their output has each line of the text.
func prints(t *testing.T, dir, commands, text string) {
	t.Helper()
	ctx, cancel := within(t, soon, "the output of "+commands)
	defer cancel()
	printed, missing := "", ""
	for {
		cmd := exec.CommandContext(ctx, "bash", "-c", commands)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			t.Fatalf("%s\nprinted\n%s\nwithout the line of the page: %s", commands, printed, missing)
		}
		printed, missing = fmt.Sprintf("%s(%v)", out, err), ""
		for line := range strings.Lines(text) {
			if line = words(line); line != untilKubeletsRefresh && !strings.Contains(words(string(out)), line) {
				missing = line
			}
		}
		if missing == "" {
			return
		}
	}
}

// words returns a text with one blank between two words, without the parts that differ from run to run.
func words(text string) string {
	return statusLine.ReplaceAllString(strings.Join(strings.Fields(text), " "), "$1 current")
}

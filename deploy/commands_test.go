// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// platformsPage describes the installation on each platform.
const platformsPage = "../docs/platforms.md"

// The helm commands of the documents make a DaemonSet that fulfills the requirements of kubelet.
func TestHelmCommands(t *testing.T) {
	path, err := tools.Path(tools.Newest(), "helm")
	if err != nil {
		t.Fatal(err)
	}
	placeholders := strings.NewReplacer("fsuser-csi-0.1.0.tgz", "deploy/chart", "sha256:...",
		"sha256:"+strings.Repeat("0", 64), "$REGISTRY", "registry.example.com")
	for page, least := range map[string]int{
		"README.md": 1, "../README.md": 1, platformsPage: 7, "../docs/tutorial.md": 1, "../docs/air-gapped.md": 1,
	} {
		commands := find(t, page, `(?m)^helm install ((?:.*\\\n)*.*)$`)
		if len(commands) < least {
			t.Errorf("%s has %d helm commands, want at least %d; has their form changed?", page, len(commands), least)
		}
		for _, command := range commands {
			command = placeholders.Replace(command)
			checkDaemonSet(t, parse(t, shell(t, path+" template --kube-version "+oldest+" "+command)))
		}
	}
}

// The chart takes the values of the examples for Argo CD and Flux, which have them in different fields.
func TestGitOpsValues(t *testing.T) {
	fields := map[string][]string{
		"Application": {"spec", "source", "helm", "valuesObject"},
		"HelmRelease": {"spec", "values"},
	}
	for _, example := range find(t, "../docs/gitops.md", "(?ms)^```yaml\n(.*?)^```$") {
		for _, o := range parse(t, []byte(example)).all {
			values, found, err := unstructured.NestedMap(o.Object, fields[o.GetKind()]...)
			if err != nil || !found || fields[o.GetKind()] == nil {
				continue // an object of another kind
			}
			delete(fields, o.GetKind())
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, encode(t, values), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := helm(t.Context(), "template", "fsuser-csi", "chart", "--kube-version", oldest, "--values", file)
			if err != nil {
				t.Fatalf("%s: %v", o.GetKind(), err)
			}
			checkDaemonSet(t, parse(t, out))
		}
	}
	if len(fields) > 0 {
		t.Errorf("the page has no values in %v", fields)
	}
}

// A row of the table of platforms names the command that tested the platform, or its section names the documents that
// were read.
func TestPlatformRows(t *testing.T) {
	rows := find(t, platformsPage, `(?m)^\| ([^-p].*) \|$`)
	if len(rows) < 13 {
		t.Errorf("%s has %d platforms; has the form of the table changed?", platformsPage, len(rows))
	}
	tested, read := regexp.MustCompile("\\| tested: `[^`]+`$"), regexp.MustCompile(`^\[(.+?)\]\(#.*\| read$`)
	for _, row := range rows {
		if tested.MatchString(row) {
			continue
		}
		if m := read.FindStringSubmatch(row); m == nil {
			t.Errorf("neither tested nor read: %s", row)
		} else if len(find(t, platformsPage, `(?m)^## (`+m[1]+`)\n(?:[^#\n].*\n|\n)*?Read: `)) != 1 {
			t.Errorf("no section says what was read about %s", m[1])
		}
	}
}

// find returns the first group of each match in a page.
func find(t *testing.T, page, pattern string) (groups []string) {
	t.Helper()
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(content, -1) {
		groups = append(groups, string(match[1]))
	}
	return groups
}

// shell runs a command at the root of the repository, as readers of the documents do.
func shell(t *testing.T, command string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
	cmd.Dir, cmd.Stderr = "..", t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return out
}

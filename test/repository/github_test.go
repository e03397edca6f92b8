// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// TestWorkflowsHaveLeastPrivilege checks what actionlint does not check: each workflow names each action by its commit,
// the commit is the same everywhere, and jobs may only read the repository unless they declare other permissions.
func TestWorkflowsHaveLeastPrivilege(t *testing.T) {
	uses := regexp.MustCompile(`(?m)\buses: *(.*)$`)
	pinned := regexp.MustCompile(`^([\w-]+/[\w-]+)[\w/-]*@([0-9a-f]{40} # v\d+\.\d+\.\d+)$`)
	commits := map[string]string{}
	for path, text := range files(t, ".github/workflows/*") {
		var workflow struct {
			Permissions map[string]string `json:"permissions"`
		}
		if err := yaml.Unmarshal(text, &workflow); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if p := workflow.Permissions; len(p) != 1 || p["contents"] != "read" {
			t.Errorf("%s: permissions are %v, want contents: read alone, and more for single jobs", path, p)
		}
		for _, use := range uses.FindAllSubmatch(text, -1) {
			action := pinned.FindSubmatch(use[1])
			if action == nil {
				t.Errorf("%s uses %s: want ACTION@COMMIT # vX.Y.Z", path, use[1])
				continue
			}
			repository, commit := string(action[1]), string(action[2])
			if first, ok := commits[repository]; ok && first != commit {
				t.Errorf("%s uses %s at %s, another workflow at %s", path, repository, commit, first)
			}
			commits[repository] = commit
		}
	}
	if len(commits) < 3 {
		t.Errorf("only %d actions were found", len(commits))
	}
}

// issueForm has the fields of GitHub's forms that the project uses.
type issueForm struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Labels      []string `json:"labels"`
	Body        []struct {
		Type       string `json:"type"`
		ID         string `json:"id"`
		Attributes struct {
			Label       string   `json:"label"`
			Description string   `json:"description"`
			Placeholder string   `json:"placeholder"`
			Value       string   `json:"value"`
			Render      string   `json:"render"`
			Options     []string `json:"options"`
		} `json:"attributes"`
		Validations struct {
			Required bool `json:"required"`
		} `json:"validations"`
	} `json:"body"`
}

// TestIssueForms checks the forms, which GitHub ignores without a message if they are wrong. Each form warns of
// secrets.
func TestIssueForms(t *testing.T) {
	forms := files(t, ".github/ISSUE_TEMPLATE/*")
	const chooser = ".github/ISSUE_TEMPLATE/config.yml"
	var config struct {
		BlankIssuesEnabled bool `json:"blank_issues_enabled"`
		ContactLinks       []struct {
			Name  string `json:"name"`
			URL   string `json:"url"`
			About string `json:"about"`
		} `json:"contact_links"`
	}
	if err := yaml.UnmarshalStrict(forms[chooser], &config); err != nil {
		t.Errorf("%s: %v", chooser, err)
	}
	delete(forms, chooser)
	if len(forms) < 2 {
		t.Errorf("only %d forms were found", len(forms))
	}
	for path, text := range forms {
		var form issueForm
		if err := yaml.UnmarshalStrict(text, &form); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if form.Name == "" || form.Description == "" {
			t.Errorf("%s needs a name and a description", path)
		}
		if !strings.Contains(string(text), "Do not paste") {
			t.Errorf("%s does not warn of secrets", path)
		}
		ids := map[string]bool{}
		for _, field := range form.Body {
			if field.Type == "markdown" {
				continue
			}
			if !slices.Contains([]string{"input", "textarea", "dropdown"}, field.Type) {
				t.Errorf("%s: the type %q is not known", path, field.Type)
			}
			if field.ID == "" || ids[field.ID] || field.Attributes.Label == "" {
				t.Errorf("%s: the field %q needs a label and an id of its own", path, field.ID)
			}
			if (field.Type == "dropdown") != (len(field.Attributes.Options) > 0) {
				t.Errorf("%s: the field %q: a dropdown has options, and no other type does", path, field.ID)
			}
			ids[field.ID] = true
		}
	}
}

// TestRenovateSeesTheToolsOfTheMakefile checks that Renovate finds each module that the Makefile runs.
func TestRenovateSeesTheToolsOfTheMakefile(t *testing.T) {
	var config struct {
		CustomManagers []struct {
			MatchStrings []string `json:"matchStrings"`
		} `json:"customManagers"`
	}
	if err := json.Unmarshal(files(t, "renovate.json")["renovate.json"], &config); err != nil {
		t.Fatal(err)
	}
	makefile := files(t, "Makefile")["Makefile"]
	all := regexp.MustCompile(` run \S+@v\S+`).FindAll(makefile, -1)
	seen := regexp.MustCompile(config.CustomManagers[0].MatchStrings[0]).FindAll(makefile, -1)
	if len(all) < 2 || len(seen) != len(all) {
		t.Errorf("Renovate sees %q of %q", seen, all)
	}
}

// TestSupportedVersions compares SUPPORT.md with the versions that make versions tests.
func TestSupportedVersions(t *testing.T) {
	named := regexp.MustCompile(`(?m)^\| Kubernetes \| (.*?) \|`).FindSubmatch(files(t, "SUPPORT.md")["SUPPORT.md"])
	if named == nil {
		t.Fatal("SUPPORT.md has no row that begins with Kubernetes")
	}
	var tested []string
	for _, k := range tools.Versions() {
		tested = append(tested, k.Minor())
	}
	if got, want := string(named[1]), strings.Join(tested, ", "); got != want {
		t.Errorf("SUPPORT.md names Kubernetes %s, tested is %s", got, want)
	}
}

// files returns the contents of the files that match a pattern, by path.
func files(t *testing.T, pattern string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no file matches %s (%v)", pattern, err)
	}
	contents := map[string][]byte{}
	for _, path := range paths {
		if contents[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return contents
}

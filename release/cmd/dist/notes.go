// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// notes writes the section of the changelog about the version. Between releases, that is the section Unreleased.
func (d *dist) notes(context.Context) error {
	changelog, err := os.ReadFile(filepath.Join(d.root, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	heading := "Unreleased"
	if d.isRelease() {
		heading = d.fileVersion()
	}
	text, err := section(string(changelog), heading)
	if err != nil {
		return fmt.Errorf("CHANGELOG.md: %w", err)
	}
	return d.write("release-notes.md", []byte(forGitHub(text, source+"/blob/"+d.version+"/")))
}

// section returns the text below a heading of the second level. A date may follow the heading's first word.
func section(changelog, heading string) (string, error) {
	at := regexp.MustCompile(`(?m)^## ` + regexp.QuoteMeta(heading) + `( .*)?$`).FindStringIndex(changelog)
	if at == nil {
		return "", fmt.Errorf("there is no section %s", heading)
	}
	text, _, _ := strings.Cut(changelog[at[1]:], "\n## ")
	if text = strings.TrimSpace(text); text == "" {
		return "", fmt.Errorf("the section %s is empty", heading)
	}
	return text + "\n", nil
}

var (
	continuation = regexp.MustCompile(`\n  +([^\s-])`)
	relativeLink = regexp.MustCompile(`\]\(([\w.][^():]*)\)`)
)

// forGitHub changes text of a file for the page of a release: GitHub shows each line break there, and has no files that
// relative links could lead to. base is the address of the files.
func forGitHub(text, base string) string {
	text = continuation.ReplaceAllString(text, " $1")
	return relativeLink.ReplaceAllString(text, "]("+base+"$1)")
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fsuser-csi/fsuser-csi/pkg/lint"
)

func newLintCommand() *cobra.Command {
	var (
		output            string
		strict, recursive bool
	)
	cmd := &cobra.Command{
		Use:   "lint [flags] " + filesUse,
		Short: "Check manifests that use the driver, before a cluster does",
		Long: `lint reads manifests and reports every problem with the driver's volumes: pods, everything with a pod template, and Lists of them, in YAML or
JSON, from files, directories (*.json, *.yaml, *.yml) or standard input (-). It asks no cluster. Templates of Helm have to be rendered first:

  helm template my-chart | fsuser-csi lint -

Exit codes: 0 all is good, 1 there are errors (with --strict also warnings), 2 wrong usage, or something could not be read.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf(`--output is %q; it must be "text" or "json"`, output)}
			}
			files, err := readManifests(args, recursive, cmd.InOrStdin())
			if err != nil {
				return &exitError{exitUsage, err}
			}
			report := lintReport{Files: len(files), Problems: []lint.Problem{}}
			for _, f := range files {
				report.add(lint.File(f))
			}
			if err := report.print(cmd.OutOrStdout(), output); err != nil {
				return &exitError{exitUsage, err}
			}
			return report.verdict(cmd.ErrOrStderr(), strict)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "text", `"text" or "json"`)
	f.BoolVar(&strict, "strict", false, "warnings fail too")
	f.BoolVarP(&recursive, "recursive", "R", false, "directories with all that is below them")
	return withUsage(cmd)
}

// lintReport is what lint prints with --output json.
type lintReport struct {
	Files    int            `json:"files"`
	Volumes  int            `json:"volumes"` // of the driver
	Errors   int            `json:"errors"`
	Warnings int            `json:"warnings"`
	Problems []lint.Problem `json:"problems"`

	unreadable bool
}

func (r *lintReport) add(result lint.Result) {
	r.Volumes += result.Volumes
	r.unreadable = r.unreadable || result.Unreadable
	r.Problems = append(r.Problems, result.Problems...)
	for _, p := range result.Problems {
		if p.Severity == lint.Error {
			r.Errors++
		} else {
			r.Warnings++
		}
	}
}

func (r *lintReport) print(out io.Writer, output string) error {
	if output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r)
	}
	for _, p := range r.Problems {
		if _, err := fmt.Fprintln(out, p); err != nil {
			return err
		}
	}
	return nil
}

// verdict says how it went, with what was looked at: that nothing was found where nothing was looked at is no good news.
func (r *lintReport) verdict(errOut io.Writer, strict bool) error {
	seen := fmt.Sprintf("in %s of the driver in %s", count(r.Volumes, "volume"), count(r.Files, "file"))
	found := fmt.Errorf("%s and %s %s", count(r.Errors, "error"), count(r.Warnings, "warning"), seen)
	switch {
	case r.unreadable:
		return &exitError{exitUsage, found}
	case r.Errors > 0, strict && r.Warnings > 0:
		return &exitError{exitProblems, found}
	case r.Warnings > 0:
		fmt.Fprintln(errOut, found)
	default:
		fmt.Fprintln(errOut, "no problems", seen)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		Short: "Check manifests that use the driver, without a cluster",
		Long: `lint reads manifests and reports every problem with volumes of fsuser.csi.io in pods, in objects with a
pod template, and in Lists of them. The manifests are YAML or JSON, in files, in directories (*.json, *.yaml, *.yml) or
on standard input (-). lint does not connect to a cluster. Render templates of Helm first:

  helm template my-chart | kubectl fsuser lint -

Exit codes: 0 no errors, 1 errors (with --strict also warnings), 2 wrong usage or unreadable input.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf(`--output is %q; it must be "text" or "json"`, output)
			}
			var in input
			if err := in.read(args, recursive, cmd.InOrStdin()); err != nil {
				return err
			}
			report := lintReport{Files: len(in.files), Problems: []lint.Problem{}}
			for _, path := range in.dangling {
				report.add(lint.Result{Problems: []lint.Problem{{File: path, Line: 1, Column: 1, Severity: lint.Error,
					Message: danglingMessage}}})
			}
			for _, f := range in.files {
				report.add(lint.File(f))
			}
			if err := report.print(cmd.OutOrStdout(), output); err != nil {
				return err
			}
			return report.result(cmd.ErrOrStderr(), strict)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "text", `output format: "text" or "json"`)
	f.BoolVar(&strict, "strict", false, "exit with code 1 after warnings, too")
	f.BoolVarP(&recursive, "recursive", "R", false, "read directories with their subdirectories")
	return cmd
}

// lintReport is the output of lint with --output json.
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
		return printJSON(out, r)
	}
	for _, p := range r.Problems {
		if _, err := fmt.Fprintln(out, p); err != nil {
			return err
		}
	}
	return nil
}

// result returns the outcome, and prints how much was checked: no problems in no volumes are no good news.
func (r *lintReport) result(errOut io.Writer, strict bool) error {
	checked := fmt.Sprintf("in %s of the driver in %s", count(r.Volumes, "volume"), count(r.Files, "file"))
	found := fmt.Sprintf("%s and %s %s", count(r.Errors, "error"), count(r.Warnings, "warning"), checked)
	switch {
	case r.unreadable:
		return fmt.Errorf("%s", found)
	case r.Errors > 0, strict && r.Warnings > 0:
		return problems("%s", found)
	case r.Warnings > 0:
		fmt.Fprintln(errOut, found)
	default:
		fmt.Fprintln(errOut, "no problems", checked)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

// Command kubectl-fsuser is a plugin of kubectl for people who use the fsuser.csi.io driver: "kubectl fsuser".
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the Makefile with -ldflags "-X main.version=...".
var version = ""

// The program catches no signal: SIGINT ends it at once, except while it replaces a file.
func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		code := exitUsage
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		os.Exit(code)
	}
}

const (
	exitProblems    = 1 // the input was read, and has problems; or a node did not answer
	exitUsage       = 2 // wrong usage, or something cannot be read or written
	exitInterrupted = 130
)

// exitError is an error with an exit code. For other errors, the exit code is exitUsage.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func problems(format string, args ...any) error {
	return &exitError{exitProblems, fmt.Errorf(format, args...)}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "kubectl-fsuser",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl fsuser"},
		Short:         "Check clusters and manifests for fsuser.csi.io, convert manifests, and show volumes",
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		// With RunE, a word that is no command is an error. Without RunE, cobra would print the help and succeed.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(newLintCommand(), newConvertCommand(), newStatusCommand(), newCheckCommand())
	return root
}

// buildVersion returns the version, or the version that Go recorded at the build if version is empty.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); version == "" && ok {
		return info.Main.Version
	}
	return version
}

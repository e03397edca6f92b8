// SPDX-License-Identifier: Apache-2.0

// Command fsuser-csi is the fsuser.csi.io driver and the tools around it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends the program at once, in case a graceful stop hangs.
	context.AfterFunc(ctx, stop)
	err := newCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		code := 1
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		os.Exit(code)
	}
}

// Exit codes of the commands that check or rewrite manifests, for scripts. Everything else that fails ends with 1.
const (
	exitProblems = 1 // the manifests were read, and not all is well with them
	exitUsage    = 2 // wrong usage, or something can't be read or written
)

// exitError is an error with the exit code that it ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "fsuser-csi",
		Short: "Secrets and ConfigMaps as files of the user who needs them",
		Long: `fsuser-csi is a CSI node driver for Kubernetes (fsuser.csi.io). It gives a pod the keys of a Secret or ConfigMap as files
owned by the user who needs them, with the mode they need, and refreshes them within milliseconds of a change.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		// With it a word that is no command is an error; without, cobra would print the help and succeed.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newNodeCommand(), newStatusCommand(), newVersionCommand())
	return root
}

// SPDX-License-Identifier: Apache-2.0

// Command fsuser-csi is the node agent of the CSI driver fsuser.csi.io.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends the program at once, in case a graceful stop hangs.
	context.AfterFunc(ctx, stop)
	cmd, err := newCommand().ExecuteContextC(ctx)
	stop()
	if err != nil {
		printError(os.Stderr, cmd, err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "fsuser-csi",
		Short: "Secrets and ConfigMaps as files of the user who needs them",
		Long: `fsuser-csi is a CSI node driver for Kubernetes (fsuser.csi.io). It gives a pod the keys of a Secret or
ConfigMap as files owned by the user who needs them, with the mode they need, and refreshes them within milliseconds
of a change.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		// With Args and RunE, a word that is no command is an error. Without them, cobra would print the help and succeed.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newNodeCommand(), newStatusCommand(), newVersionCommand())
	return root
}

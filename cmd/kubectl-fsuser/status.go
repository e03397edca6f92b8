// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// statusQuery selects the volumes to show.
type statusQuery struct {
	namespace string // of pods; empty means all
	pod       string // empty means all
	output    string
}

func newStatusCommand() *cobra.Command {
	var (
		q             statusQuery
		allNamespaces bool
		connection    = newConnection()
	)
	cmd := &cobra.Command{
		Use:   "status [POD]",
		Short: "Show the volumes of all nodes, why a volume is stale, and why a driver's access does not work",
		Long: `status asks the drivers of all nodes for their volumes, by running "fsuser-csi status" in the driver's pods.
You need the rights to list these pods and to exec into them.

Exit codes: 0 all drivers answered, 1 a driver did not answer, 2 wrong usage, or the API server did not answer.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.output != "table" && q.output != "json" {
				return fmt.Errorf(`--output is %q; it must be "table" or "json"`, q.output)
			}
			cluster, err := connection.open()
			if err != nil {
				return err
			}
			if !allNamespaces {
				q.namespace = cluster.namespace
			}
			if len(args) > 0 {
				q.pod = strings.TrimPrefix(args[0], "pod/")
			}
			return q.run(cmd.Context(), cluster, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&allNamespaces, "all-namespaces", "A", false, "show the volumes of pods in all namespaces")
	f.StringVarP(&q.output, "output", "o", "table", `output format: "table" or "json"`)
	connection.addFlags(cmd)
	return cmd
}

// run shows the answers of the drivers.
func (q statusQuery) run(ctx context.Context, cluster *cluster, out, errOut io.Writer) error {
	drivers, err := cluster.drivers(ctx)
	if err != nil {
		return fmt.Errorf("list the driver's pods: %w", err)
	}
	if len(drivers) == 0 {
		return fmt.Errorf("no pod has the label %s: the driver is not installed, or not in --driver-namespace",
			driverLabel)
	}
	answers, errs := cluster.ask(ctx, drivers)
	nodes := []status.Node{}
	for i, driver := range drivers {
		if errs[i] != nil {
			fmt.Fprintf(errOut, "node %s: pod %s/%s: %v\n", driver.Spec.NodeName, driver.Namespace, driver.Name, errs[i])
			continue
		}
		answers[i].Volumes = slices.DeleteFunc(answers[i].Volumes, q.hides)
		nodes = append(nodes, answers[i])
	}
	if q.output == "json" {
		err = printJSON(out, nodes)
	} else {
		err = status.Table(out, nodes, time.Now())
	}
	if silent := len(drivers) - len(nodes); err == nil && silent > 0 {
		return problems("%s of %d did not answer", count(silent, "driver"), len(drivers))
	}
	return err
}

func (q statusQuery) hides(v status.Volume) bool {
	return q.namespace != "" && v.PodNamespace != q.namespace || q.pod != "" && v.PodName != q.pod
}

func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

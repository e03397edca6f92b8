// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiversion "k8s.io/apimachinery/pkg/version"
)

func newCheckCommand() *cobra.Command {
	var output string
	connection := newConnection()
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Show which kind of access works in this cluster, and whether the installed driver works",
		Long: `check reads from the API server what the driver needs, before and after the installation of the driver. It
changes nothing. A check whose answer you have no right to read is unknown, and names the right.

Exit codes: 0 the installed driver works, or none is installed and access node works; 1 otherwise; 2 wrong usage, or the
API server did not answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf(`--output is %q; it must be "table" or "json"`, output)
			}
			cluster, err := connection.open()
			if err != nil {
				return err
			}
			report, err := inspect(cmd.Context(), cluster)
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.print(cmd.OutOrStdout())
			}
			if err == nil && !report.Works {
				return problems("%s", report.failure())
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", `output format: "table" or "json"`)
	connection.addFlags(cmd)
	return cmd
}

// result is the result of a check.
type result string

const (
	resultOK      result = "ok"
	resultNo      result = "no"
	resultUnknown result = "unknown"
)

// finding is the finding of a check.
type finding struct {
	Check  string `json:"check"`
	Result result `json:"result"`
	Found  string `json:"found"`
	// Remedy is the remedy if Result is no.
	Remedy string `json:"remedy,omitempty"`
}

func isOK(found string) finding { return finding{Result: resultOK, Found: found} }

func isNot(found, remedy string) finding {
	return finding{Result: resultNo, Found: found, Remedy: remedy}
}

// notKnown returns the finding of a check that failed. right is the right for its request.
func notKnown(err error, right string) finding {
	if apierrors.IsForbidden(err) {
		return finding{Result: resultUnknown, Found: "you do not have the right to " + right}
	}
	return finding{Result: resultUnknown, Found: err.Error()}
}

// need is the subject of a check.
type need int

const (
	accessNode need = iota // the requirements of access node
	everyAccess
	installed // the objects and pods of an installed driver
)

// check is one check of a cluster.
type check struct {
	name string
	need need
	run  func(context.Context, *inspection) finding
}

// inspection is the state of checking a cluster.
type inspection struct {
	*cluster
	version apiversion.Info
	// daemonSet is the driver's DaemonSet; nil if there is none, or if it can't be read.
	daemonSet *appsv1.DaemonSet
	// csiDriver is the driver's CSIDriver if csiDriverErr is nil.
	csiDriver    storagev1.CSIDriver
	csiDriverErr error
	// values are the values of the chart for this cluster.
	values []string
}

// checkReport is the output of check.
type checkReport struct {
	Checks []finding `json:"checks"`
	// Installed reports whether the driver is installed.
	Installed bool `json:"installed"`
	// Works reports whether the installed driver works, or whether access node works if no driver is installed.
	Works bool `json:"works"`
	// Set are the values of the chart for an installation. The first one is the access.
	Set []string `json:"set"`

	nodeAccess result
}

// inspect runs all checks. It returns an error if the API server does not answer.
func inspect(ctx context.Context, c *cluster) (*checkReport, error) {
	i := &inspection{cluster: c}
	var err error
	if i.version, err = read[apiversion.Info](ctx, c, "/version", ""); err != nil && !apierrors.IsForbidden(err) {
		return nil, err
	}
	r := &checkReport{nodeAccess: resultOK}
	others := resultOK
	for _, check := range checks() {
		if check.need == installed && !i.installed() {
			continue
		}
		f := check.run(ctx, i)
		f.Check = check.name
		r.Checks = append(r.Checks, f)
		if check.need == accessNode {
			r.nodeAccess = worse(r.nodeAccess, f.Result)
		} else {
			others = worse(others, f.Result)
		}
		if check.name == ownAccess && f.Result == resultOK && i.access() == "node" && r.nodeAccess == resultUnknown {
			r.nodeAccess = resultOK // The drivers' own checks have shown that.
		}
	}
	r.Installed = i.installed()
	r.Works = others != resultNo && (r.nodeAccess == resultOK || i.access() == "service-account")
	r.Set = append([]string{"access=node"}, i.values...)
	if r.nodeAccess == resultNo {
		r.Set[0] = "access=namespaces"
	}
	return r, nil
}

// worse returns the combined result of two checks that must both be ok.
func worse(a, b result) result {
	order := []result{resultOK, resultUnknown, resultNo}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

func (r *checkReport) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RESULT\tCHECK\tFOUND")
	for _, f := range r.Checks {
		fmt.Fprintf(w, "%s\t%s\t%s", f.Result, f.Check, f.Found)
		if f.Remedy != "" {
			fmt.Fprintf(w, "; %s", f.Remedy)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, r.advice())
	return w.Flush()
}

// advice returns the last line of the table: the access to install with.
func (r *checkReport) advice() string {
	set := "--set " + strings.Join(r.Set, ",")
	switch {
	case r.Installed && r.Works:
		return "The installed driver works."
	case r.nodeAccess == resultOK:
		return "Access node works in this cluster: install with " + set
	case r.nodeAccess == resultNo:
		return "Access node does not work in this cluster: install with " + set
	}
	return "Access node is not known to work in this cluster. Install with " + set + ", and run this check again: " +
		"then it asks the driver"
}

// failure returns an error if the report says that something does not work or is not known to work.
func (r *checkReport) failure() error {
	var failed []string
	for _, f := range r.Checks {
		if f.Result == resultNo {
			failed = append(failed, f.Check)
		}
	}
	switch {
	case len(failed) > 0:
		return fmt.Errorf("not ok: %s", strings.Join(failed, ", "))
	case r.Installed:
		return errors.New("whether the installed driver works is not known")
	}
	return errors.New("whether access node works is not known")
}

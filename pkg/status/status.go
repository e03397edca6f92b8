// SPDX-License-Identifier: Apache-2.0

// Package status defines the report of a driver about itself and its volumes. The driver writes the report, and
// "fsuser-csi status" and "kubectl fsuser status" show it.
package status

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Node is the report of the driver of a node.
type Node struct {
	// Node is the node's name.
	Node string `json:"node"`
	// Access is absent if the state of the access is unknown, and without an API server.
	Access  *Access  `json:"access,omitempty"`
	Volumes []Volume `json:"volumes"`
}

// Access describes whether the API server lets the driver read objects.
type Access struct {
	Ready bool `json:"ready"`
	// Reason is the reason why the access does not work, with the remedy. It is absent if Ready is true.
	Reason string `json:"reason,omitempty"`
	// Since is the time of the last change of Ready.
	Since time.Time `json:"since"`
}

// Volume is a published volume.
type Volume struct {
	PodNamespace string `json:"podNamespace"`
	PodName      string `json:"podName"`
	PodUID       string `json:"podUID"`
	// Volume is the volume's name in the pod.
	Volume string `json:"volume"`
	// Object is the origin of the content. Several objects are joined by commas.
	Object string `json:"object"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	// Mode is the octal mode of files without a mode of their own. The modes of several sources are joined by commas.
	Mode string `json:"mode"`
	// ResourceVersion is the version that the files show. The versions of several objects are joined by commas. It is
	// empty if no version is known.
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// Refresh is the attribute refresh: watch or off.
	Refresh string `json:"refresh"`
	// Bytes is the number of bytes of content.
	Bytes int64 `json:"bytes"`
	// Refreshed is the time when this process last wrote the files or found them current. It is absent before that.
	Refreshed *time.Time `json:"refreshed,omitempty"`
	// Stale is the reason why the files may be outdated, and StaleSince the beginning. Both are absent for current files.
	Stale      string     `json:"stale,omitempty"`
	StaleSince *time.Time `json:"staleSince,omitempty"`
}

const header = "NODE\tPOD\tVOLUME\tOBJECT\tOWNER\tMODE\tVERSION\tREFRESHED\tSTATE"

// Table prints the volumes of nodes. Before the table, it prints a line for each node whose access does not work.
func Table(out io.Writer, nodes []Node, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, n := range nodes {
		if a := n.Access; a != nil && !a.Ready {
			fmt.Fprintf(w, "node %s: the driver's access has not worked for %s: %s\n", n.Node, age(now, &a.Since), a.Reason)
		}
	}
	fmt.Fprintln(w, header)
	for _, n := range nodes {
		for _, v := range n.Volumes {
			fmt.Fprintln(w, n.Node+"\t"+row(v, now))
		}
	}
	return w.Flush()
}

func row(v Volume, now time.Time) string {
	state := "current"
	switch {
	case v.Stale != "":
		state = "stale for " + age(now, v.StaleSince) + ": " + v.Stale
	case v.Refresh == "off":
		state = "fixed"
	}
	return fmt.Sprintf("%s/%s\t%s\t%s\t%d:%d\t%s\t%s\t%s\t%s", v.PodNamespace, v.PodName, v.Volume, v.Object, v.UID,
		v.GID, v.Mode, cmp.Or(v.ResourceVersion, "-"), age(now, v.Refreshed), state)
}

// age returns the time that has passed since at, or "-" if at is unknown.
func age(now time.Time, at *time.Time) string {
	if at == nil {
		return "-"
	}
	return now.Sub(*at).Round(time.Second).String()
}

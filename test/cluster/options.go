// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

// Options of Up. The zero value is good.
type Options struct {
	// RunDir is the cluster's folder, one for each that runs at a time. Empty:
	// DefaultRunDir.
	RunDir string
	// Detach lets the cluster outlive this process, until somebody calls Down.
	Detach bool
	// Progress receives a line for each step. Nil: nobody does.
	Progress io.Writer
	// Kubernetes is the release of the cluster's Kubernetes. The zero value is the newest.
	Kubernetes tools.Kubernetes
	// Nodes is how many nodes there are. 0: one.
	Nodes int
	// Images are tars to import, beside pause and busybox, before the node is
	// Ready. Import does it later.
	Images []string
	// APIServerArgs and KubeletArgs are flags that win over those of package
	// supervisor.
	APIServerArgs, KubeletArgs []string
	// Program is the path of the command fsuser-cluster. Empty: it is compiled
	// into the cache folder.
	Program string
}

// DefaultRunDir returns the folder of a cluster for which none is named:
// `cluster` in the cache folder.
func DefaultRunDir() (string, error) {
	cache, err := tools.Cache()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "cluster"), nil
}

// withDefaults sets what is left open, and makes paths absolute.
func (o Options) withDefaults() (_ Options, err error) {
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Nodes < 1 || o.Nodes > int(supervisor.MaxNodes) {
		return Options{}, fmt.Errorf("a cluster of %d nodes: have 1 to %d", o.Nodes, supervisor.MaxNodes)
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	o.Kubernetes = cmp.Or(o.Kubernetes, tools.Newest())
	if o.RunDir == "" {
		if o.RunDir, err = DefaultRunDir(); err != nil {
			return Options{}, err
		}
	}
	if o.RunDir, err = filepath.Abs(o.RunDir); err != nil {
		return Options{}, err
	}
	images := make([]string, len(o.Images))
	for i, image := range o.Images {
		if images[i], err = filepath.Abs(image); err != nil {
			return Options{}, err
		}
	}
	o.Images = images
	return o, nil
}

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

// Options are the options of Up. The zero value is valid.
type Options struct {
	// RunDir is the cluster's folder. Clusters that run at the same time have different folders. The empty string means
	// DefaultRunDir.
	RunDir string
	// Detach makes the cluster outlive this process, until a call of Down.
	Detach bool
	// Progress receives a line for each step. If it is nil, the lines are dropped.
	Progress io.Writer
	// Kubernetes is the release of the cluster's Kubernetes. The zero value is the newest.
	Kubernetes tools.Kubernetes
	// Nodes is the number of nodes. 0 means one.
	Nodes int
	// Images are tar files to import before the node is Ready, in addition to pause and busybox. Import imports images
	// later.
	Images []string
	// APIServerArgs and KubeletArgs are flags that override those of package supervisor.
	APIServerArgs, KubeletArgs []string
	// Program is the path of the command fsuser-cluster. If it is empty, the command is compiled into the cache folder.
	Program string
}

// DefaultRunDir returns the default folder of a cluster: `cluster` in the cache folder.
func DefaultRunDir() (string, error) {
	cache, err := tools.Cache()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "cluster"), nil
}

// withDefaults sets missing options, and makes paths absolute.
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

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

func up(ctx context.Context, runDir string, nodes int) error {
	begin := time.Now()
	version, err := tools.FromEnvironment()
	if err != nil {
		return err
	}
	o := cluster.Options{RunDir: runDir, Kubernetes: version, Nodes: nodes, Detach: true, Progress: os.Stdout}
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	fmt.Printf("up after %.1f s; logs are in %s\nexport KUBECONFIG=%s PATH=%s:$PATH\n",
		time.Since(begin).Seconds(), c.Logs(), c.Kubeconfig(), c.Bin())
	return nil
}

// shell runs a command inside of the cluster. A Ctrl-C is for that command only.
func shell(runDir string, args []string) error {
	c, err := cluster.Open(runDir)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"bash", "--norc", "-i"}
	}
	cmd, err := c.Command(context.Background(), args[0], args[1:]...)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, `PS1=\h:\w\$ `)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	ignoreInterrupt()
	return cmd.Run()
}

func importAll(ctx context.Context, runDir string, tars []string) error {
	c, err := cluster.Open(runDir)
	if err != nil {
		return err
	}
	for _, tar := range tars {
		if err := c.Import(ctx, tar); err != nil {
			return err
		}
	}
	return nil
}

func unpack(ctx context.Context, packages []string) error {
	if len(packages) == 0 {
		return errUsage
	}
	cache, err := tools.Cache()
	if err != nil {
		return err
	}
	root, err := images.Unpack(ctx, filepath.Join(cache, "debian"), packages...)
	if err != nil {
		return err
	}
	fmt.Println(root)
	return nil
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Clean removes the cgroups and the files of a cluster whose processes have ended, except the logs and the lock. The
// caller holds the lock.
func Clean(ctx context.Context, runDir string) error {
	paths := Paths(runDir)
	errs := []error{removeCgroups(ctx, paths.Cgroup())}
	for _, path := range []string{paths.State(), paths.Kubeconfig(), paths.Bin(), paths.Data()} {
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("remove what the cluster has left: %w", err))
		}
	}
	return errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// cgroupInterval is the pause between two attempts to remove a cgroup, because a process that has just ended may still
// belong to it.
const cgroupInterval = 20 * time.Millisecond

// cgroupHierarchies returns the root folders of all hierarchies: one of cgroup v2, or one for each set of controllers
// of v1 and possibly a v2 hierarchy in addition, which runc also uses.
func cgroupHierarchies() ([]string, error) {
	if isType(cgroupMount, unix.CGROUP2_SUPER_MAGIC) {
		return []string{cgroupMount}, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var roots []string
	for _, entry := range entries {
		// Symbolic links, such as cpu to cpu,cpuacct, are ignored.
		if path := filepath.Join(cgroupMount, entry.Name()); entry.IsDir() &&
			(isType(path, unix.CGROUP_SUPER_MAGIC) || isType(path, unix.CGROUP2_SUPER_MAGIC)) {
			roots = append(roots, path)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("list cgroup hierarchies: none below %s", cgroupMount)
	}
	return roots, nil
}

func isType(path string, magic int64) bool {
	var info unix.Statfs_t
	return unix.Statfs(path, &info) == nil && int64(info.Type) == magic
}

// makeCgroups makes the cluster's parent cgroup in every hierarchy, because kubelet refuses a parent that does not
// exist.
func makeCgroups(name string) error {
	roots, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if root == cgroupMount {
			if err := enableControllers(root); err != nil {
				return err
			}
		}
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// No process can join a cgroup with an empty cpuset, which is the default in v1.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(root, dir, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// enableControllers passes the controllers of cgroup v2 to the children of the root, as systemd does for the
// controllers that it uses.
func enableControllers(root string) error {
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	for _, controller := range strings.Fields(string(controllers)) {
		// If a required controller cannot be enabled, kubelet reports that.
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
	return nil
}

func inherit(parent, child, file string) error {
	value, err := os.ReadFile(filepath.Join(parent, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // This is not the controller's hierarchy, or it is v2, where children inherit.
	}
	if err != nil {
		return fmt.Errorf("read parent's cpuset: %w", err)
	}
	if err := os.WriteFile(filepath.Join(child, file), value, 0o644); err != nil {
		return fmt.Errorf("set cpuset: %w", err)
	}
	return nil
}

// removeCgroups removes the cluster's cgroups after the end of their processes.
func removeCgroups(ctx context.Context, name string) error {
	roots, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := removeCgroup(ctx, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(ctx context.Context, root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list cgroups: %w", err)
	}
	slices.Reverse(dirs) // children first
	ticker := time.NewTicker(cgroupInterval)
	defer ticker.Stop()
	for _, dir := range dirs {
		for {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup %s: %w: %w", dir, err, context.Cause(ctx))
			}
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// env has the parts that the benchmarks share. Each part is created on its first use.
type env struct {
	size size
	// dir is on a mount with shared propagation, like kubelet's root directory. All files and mounts of the run are below
	// it. run is a tmpfs in it, like /run.
	dir, run string

	binary  lazy[string]
	cluster lazy[*cluster]
	// api and manifests are drivers with an API server and a directory of manifests.
	api       lazy[*node]
	manifests lazy[*node]
	crowd     lazy[*crowd]
	// peers are the started processes of other drivers.
	peers map[peer]*node

	undo []func() error
	// last is the last number that was used for a unique name.
	last int
}

func newEnv(s size) (*env, error) {
	// The path is short, because a unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "fsuser-bench-")
	if err != nil {
		return nil, err
	}
	e := &env{size: s, dir: dir, run: filepath.Join(dir, "run"), peers: map[peer]*node{}}
	e.onClose(func() error { return os.RemoveAll(dir) })
	if err := e.share(); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (e *env) share() error {
	if err := os.Chmod(e.dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(e.dir, e.dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on itself: %w", e.dir, err)
	}
	// The unmount also removes the mounts below.
	e.onClose(func() error { return unix.Unmount(e.dir, unix.MNT_DETACH) })
	if err := unix.Mount("", e.dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make %s shared: %w", e.dir, err)
	}
	if err := os.Mkdir(e.run, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", e.run, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", e.run, err)
	}
	return nil
}

func (e *env) onClose(f func() error) { e.undo = append(e.undo, f) }

// close undoes all steps, the last one first.
func (e *env) close() error {
	var errs []error
	for i := len(e.undo) - 1; i >= 0; i-- {
		errs = append(errs, e.undo[i]())
	}
	return errors.Join(errs...)
}

// name returns a unique name.
func (e *env) name(prefix string) string {
	e.last++
	return fmt.Sprintf("%s-%d", prefix, e.last)
}

// newDir creates a directory with a unique name.
func (e *env) newDir(prefix string) (string, error) {
	dir := filepath.Join(e.dir, e.name(prefix))
	return dir, os.Mkdir(dir, 0o755)
}

// lazy is a value that is created on its first use.
type lazy[T any] struct {
	made  bool
	value T
}

func (l *lazy[T]) get(make func() (T, error)) (_ T, err error) {
	if !l.made {
		if l.value, err = make(); err != nil {
			return l.value, err
		}
		l.made = true
	}
	return l.value, nil
}

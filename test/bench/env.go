// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// env is what the benchmarks share. Its parts are made when the first one needs them.
type env struct {
	size size
	// dir lies on a mount with shared propagation, as kubelet's root directory does. All that is written and mounted is
	// below it. run is a tmpfs in it, as /run is one.
	dir, run string

	binary  lazy[string]
	cluster lazy[*cluster]
	// api and manifests are drivers with an API server and a directory of manifests.
	api       lazy[*node]
	manifests lazy[*node]
	crowd     lazy[*crowd]
	// peers are the other drivers that were started.
	peers map[peer]*node

	undo []func() error
	// last numbers what needs a name of its own.
	last int
}

func newEnv(s size) (*env, error) {
	// Not below a longer path: a unix socket has 107 bytes.
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
	// Takes with it whatever is mounted below.
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

// close undoes everything, the last first.
func (e *env) close() error {
	var errs []error
	for i := len(e.undo) - 1; i >= 0; i-- {
		errs = append(errs, e.undo[i]())
	}
	return errors.Join(errs...)
}

// name gives a name that no other call gives.
func (e *env) name(prefix string) string {
	e.last++
	return fmt.Sprintf("%s-%d", prefix, e.last)
}

// newDir makes a directory of its own.
func (e *env) newDir(prefix string) (string, error) {
	dir := filepath.Join(e.dir, e.name(prefix))
	return dir, os.Mkdir(dir, 0o755)
}

// lazy is a value that is made once, when it is first asked for.
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

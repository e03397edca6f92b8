// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// clean removes all reserved names except ..data and the current generation, and returns all other names in the
// directory. It removes the ..data_tmp and the generations of a killed writer, in which a revoked secret would stay
// readable, and which take memory.
func clean(dir directory, current string) (visible []string, err error) {
	names, err := dir.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		switch {
		case !strings.HasPrefix(name, reservedPrefix):
			visible = append(visible, name)
		case name == current:
		case name == dataLink && current != "":
			// A ..data that names no generation of this package is removed, too: it may be a directory, which a rename of a link
			// can't replace.
		default:
			if err := removeTree(dir, name); err != nil {
				return nil, err
			}
		}
	}
	return visible, nil
}

// removeTree removes the file, link or directory called name, and everything below it. It descends with descriptors and
// follows no link. A name that does not exist is no error.
func removeTree(dir directory, name string) error {
	err := unix.Unlinkat(dir.fd(), name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return fmt.Errorf("remove %q: %w", name, err)
	}
	// An empty directory is removed without opening it: a writer that ran out of descriptors leaves an empty directory,
	// and opening it would fail, too.
	err = unix.Unlinkat(dir.fd(), name, unix.AT_REMOVEDIR)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	sub, err := openDir(dir.fd(), name)
	if err != nil {
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	defer sub.close()
	names, err := sub.names()
	if err != nil {
		return fmt.Errorf("list directory %q: %w", name, err)
	}
	for _, child := range names {
		if err := removeTree(sub, child); err != nil {
			return err
		}
		failpoint.Hit("projector-tree-half-removed")
	}
	if err := unix.Unlinkat(dir.fd(), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove directory %q: %w", name, err)
	}
	return nil
}

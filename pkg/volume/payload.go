// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
)

// payload makes the files of a volume from the content of its objects. It has no side effects, and the same input gives
// the same files. If two sources have a file with the same path, the later source wins, as in Kubernetes' projected
// volumes. Templates are added last.
func (v *volume) payload(content []projected, limits Limits) (projector.Payload, error) {
	files := map[string]projector.File{}
	for _, p := range content {
		var err error
		switch {
		case p.Object.Kind == attributes.Pod:
			err = v.fieldFiles(files, p)
		case len(p.Items) > 0:
			err = v.itemFiles(files, p)
		default:
			err = v.keyFiles(files, p)
		}
		if err != nil {
			return projector.Payload{}, err
		}
	}
	if err := v.addTemplates(files, content, limits); err != nil {
		return projector.Payload{}, err
	}
	uid, gid := v.owner()
	p := projector.Payload{
		Directories: v.spec.SubPaths, MountPoints: v.spec.MountPoints,
		Layout: layoutOf(v.spec), DirMode: v.spec.DirMode, UID: uid, GID: gid,
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		p.Files = append(p.Files, files[path])
	}
	return p, v.checkSize(p, limits)
}

func layoutOf(s attributes.Spec) projector.Layout {
	switch s.Layout {
	case attributes.LayoutFiles:
		return projector.Files
	case attributes.LayoutInPlace:
		return projector.InPlace
	}
	return projector.Links
}

// file makes a file. Its owner and mode are those of its path, or else of its item, or else of the volume.
func (v *volume) file(path string, data []byte, s attributes.Source, item attributes.Item) projector.File {
	uid, gid := v.owner()
	own := v.spec.Paths[path]
	return projector.File{
		Path: path, Data: data,
		UID: firstOf(own.UID, item.UID, &uid), GID: firstOf(own.GID, &gid), Mode: firstOf(own.Mode, item.Mode, &s.Mode),
	}
}

// keyFiles adds a file for each key.
func (v *volume) keyFiles(files map[string]projector.File, p projected) error {
	for key, data := range p.content.Data {
		// The API server accepts no such key, but the safety of a path must not depend on the API server.
		clean, problem := attributes.CleanPath(key)
		if problem == "" && (clean != key || strings.Contains(key, "/")) {
			problem = "must be a single element"
		}
		if problem != "" {
			return fmt.Errorf("%w: key %q of %s can't be a file name: it %s",
				ErrPrecondition, key, v.originOf(p.projection), problem)
		}
		files[key] = v.file(key, data, p.Source, attributes.Item{})
	}
	return nil
}

// itemFiles adds the files that the items of a Secret or ConfigMap name.
func (v *volume) itemFiles(files map[string]projector.File, p projected) error {
	for _, item := range p.Items {
		data, ok := p.content.Data[item.Key]
		switch {
		case ok:
			files[item.Path] = v.file(item.Path, data, p.Source, item)
		case !p.Optional:
			return fmt.Errorf("%w: %s has no key %q, which an item of the pod's volume %q names; "+
				"add the key, or set optional: true in that volume",
				ErrPrecondition, v.originOf(p.projection), item.Key, v.spec.Volume)
		}
	}
	return nil
}

// fieldFiles adds the files of the downward API.
func (v *volume) fieldFiles(files map[string]projector.File, p projected) error {
	for _, item := range p.Items {
		data, err := downward(p.content, item, v.allocatable)
		if err != nil {
			return fmt.Errorf("%w: %s %w", ErrPrecondition, v.originOf(p.projection), err)
		}
		files[item.Path] = v.file(item.Path, data, p.Source, item)
	}
	return nil
}

// checkPaths returns an error if the PATH of an attribute uid/PATH, gid/PATH or mode/PATH is the path of no file,
// unless
// an optional object that is missing may bring the file.
func (v *volume) checkPaths(content []projected, p projector.Payload) error {
	missing := maps.Clone(v.spec.Paths)
	for _, f := range p.Files {
		delete(missing, f.Path)
	}
	maps.DeleteFunc(missing, func(path string, _ attributes.Permissions) bool {
		_, isTemplate := v.spec.Templates[path]
		return isTemplate || mayCome(path, content)
	})
	if len(missing) == 0 {
		return nil
	}
	path := slices.Min(slices.Collect(maps.Keys(missing)))
	return fmt.Errorf("%w: an attribute has the PATH %q, which is no file of %s; correct the PATH, or add the file",
		ErrPrecondition, path, v.origin())
}

// mayCome reports whether a missing optional object or key may bring a file with this path.
func mayCome(path string, content []projected) bool {
	return slices.ContainsFunc(content, func(p projected) bool {
		return p.Optional && (len(p.Items) == 0 && p.content.Data == nil ||
			slices.ContainsFunc(p.Items, func(item attributes.Item) bool {
				_, ok := p.content.Data[item.Key]
				return item.Path == path && !ok
			}))
	})
}

func (v *volume) checkBytes(size int64, limits Limits) error {
	if size > limits.Bytes {
		return fmt.Errorf("%w: the files of %s hold %d bytes, more than the %d that a volume may hold (--max-volume-bytes)",
			ErrPrecondition, v.origin(), size, limits.Bytes)
	}
	return nil
}

func (v *volume) checkSize(p projector.Payload, limits Limits) error {
	if err := v.checkBytes(p.Size(), limits); err != nil {
		return err
	}
	// A directory takes as much kernel memory as a file, and a single path can have two thousand directories.
	if directories := p.DirectoryCount(); len(p.Files)+directories > limits.Files {
		return fmt.Errorf("%w: %s makes %d files and %d directories, more than the %d that a volume may have of both "+
			"(--max-volume-files); pick keys with items, and give them paths with fewer directories",
			ErrPrecondition, v.origin(), len(p.Files), directories, limits.Files)
	}
	return nil
}

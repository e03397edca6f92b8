// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// payload says which files the content of the volume's objects makes, one content for each source. It touches nothing: the same
// input gives the same files.
func (v *volume) payload(content []source.Content, limits Limits) (projector.Payload, error) {
	uid, gid := v.owner()
	p := projector.Payload{DirMode: v.spec.DirMode, UID: uid, GID: gid}
	for i, s := range v.spec.Sources {
		add := func(path string, data []byte, item attributes.Item) {
			p.Files = append(p.Files, projector.File{
				Path: path, Data: data,
				Mode: or(item.Mode, s.Mode), UID: or(item.UID, uid), GID: or(item.GID, gid),
			})
		}
		if len(s.Items) == 0 {
			for key, data := range content[i].Data {
				// The API server lets no such key in; a path is not the place to rely on that.
				problems := attributes.ValidatePath(key)
				if strings.Contains(key, "/") {
					problems = append(problems, "must not contain '/'")
				}
				if problems != nil {
					return projector.Payload{}, fmt.Errorf("%w: key %q of %s can't be a file name: %s", ErrPrecondition, key, v.originOf(i), strings.Join(problems, "; "))
				}
				add(key, data, attributes.Item{})
			}
		}
		for j, item := range s.Items {
			if s.Object.Kind == attributes.Pod {
				data, err := downward(content[i], item)
				if err != nil {
					return projector.Payload{}, fmt.Errorf("%w: %s %w", ErrPrecondition, v.originOf(i), err)
				}
				add(item.Path, data, item)
				continue
			}
			data, ok := content[i].Data[item.Key]
			switch {
			case ok:
				add(item.Path, data, item)
			case !s.Optional:
				return projector.Payload{}, fmt.Errorf(`%w: %s has no key %q, which %s names; add the key, or set optional: "true" to go without it`,
					ErrPrecondition, v.originOf(i), item.Key, v.itemName(i, j))
			}
		}
	}
	if len(v.spec.Sources) > 1 {
		if conflict := conflictOf(p.Files); conflict != "" {
			return projector.Payload{}, fmt.Errorf("%w: %s: %s; give one of them another path with items", ErrPrecondition, v.origin(), conflict)
		}
	}
	return p, v.checkSize(p, limits)
}

// itemName is what people call an item of a source.
func (v *volume) itemName(source, item int) string {
	if len(v.spec.Sources) == 1 {
		return fmt.Sprintf("items[%d]", item)
	}
	return fmt.Sprintf("items[%d] of sources[%d]", item, source)
}

// conflictOf says which path two sources want, or want as a file and as a directory. What attributes alone show was refused before.
func conflictOf(files []projector.File) string {
	taken := map[string]bool{}
	for _, f := range files {
		if taken[f.Path] {
			return fmt.Sprintf("two of its sources have a file %q", f.Path)
		}
		taken[f.Path] = true
	}
	for _, f := range files {
		for i := range f.Path {
			if f.Path[i] == '/' && taken[f.Path[:i]] {
				return fmt.Sprintf("one of its sources has a file %q, another %q", f.Path[:i], f.Path)
			}
		}
	}
	return ""
}

func (v *volume) checkSize(p projector.Payload, limits Limits) error {
	if size := p.Size(); size > limits.Bytes {
		return fmt.Errorf("%w: the files of %s hold %d bytes, more than the %d that a volume may hold (--max-volume-bytes)",
			ErrPrecondition, v.origin(), size, limits.Bytes)
	}
	// A directory takes as much of the kernel's memory as a file, and one path can want two thousand of them.
	if directories, _ := around(p); len(p.Files)+len(directories) > limits.Files {
		return fmt.Errorf("%w: %s makes %d files and %d directories, more than the %d that a volume may have of both (--max-volume-files); pick keys with items, and give them paths with fewer directories",
			ErrPrecondition, v.origin(), len(p.Files), len(directories), limits.Files)
	}
	return nil
}

// origin names where the content comes from, for error messages.
func (v *volume) origin() string {
	var all []string
	for i := range v.objects {
		if name := v.originOf(i); !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// originOf names where the content of one source comes from.
func (v *volume) originOf(i int) string {
	if v.hasObjects() {
		return v.objects[i].String()
	}
	return fmt.Sprintf("the Secret of nodePublishSecretRef of pod %q", v.pod.Namespace+"/"+v.pod.Name)
}

// room returns what a tmpfs needs to hold two versions of p at once: during a refresh the old one is still there.
func room(p projector.Payload) tmpfs.Limits {
	page, bytes := uint64(os.Getpagesize()), uint64(pages(p))
	directories, names := around(p)
	// A long link takes a page, and each visible name is a link. The generation is a directory as well.
	links := uint64(len(names))
	perVersion := uint64(len(p.Files)+len(directories)) + 1
	// Beyond two versions: the root, ..data, ..data_tmp, and the links, of which a refresh replaces one by one.
	const spare = 16
	return tmpfs.Limits{
		Bytes:  2*bytes + (2*links+spare)*page,
		Inodes: 2*perVersion + 2*links + spare,
	}
}

// around is what the files of p need besides themselves: the directories above them, and the names in the volume's own directory, each
// of which is a link.
func around(p projector.Payload) (directories, names map[string]bool) {
	directories, names = map[string]bool{}, map[string]bool{}
	for _, f := range p.Files {
		name, _, _ := strings.Cut(f.Path, "/")
		names[name] = true
		for i := range f.Path {
			if f.Path[i] == '/' {
				directories[f.Path[:i]] = true
			}
		}
	}
	return directories, names
}

func or(value *uint32, otherwise uint32) uint32 {
	if value != nil {
		return *value
	}
	return otherwise
}

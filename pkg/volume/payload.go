// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// payload says which files the content of the volume's object makes. It touches nothing: the same input gives the same
// files.
func (v *volume) payload(content source.Content, limits Limits) (projector.Payload, error) {
	uid, gid := v.owner()
	p := projector.Payload{DirMode: v.spec.DirMode, UID: uid, GID: gid}
	add := func(path string, data []byte, mode, fileUID, fileGID *uint32) {
		p.Files = append(p.Files, projector.File{
			Path: path, Data: data,
			Mode: or(mode, v.spec.Mode), UID: or(fileUID, uid), GID: or(fileGID, gid),
		})
	}
	if len(v.spec.Items) == 0 {
		for key, data := range content.Data {
			// The API server lets no such key in; a path is not the place to rely on that.
			if problems := attributes.ValidatePath(key); problems != nil {
				return projector.Payload{}, fmt.Errorf("%w: key %q of %s can't be a file name: %s", ErrPrecondition, key, v.origin(), strings.Join(problems, "; "))
			}
			add(key, data, nil, nil, nil)
		}
	}
	for i, item := range v.spec.Items {
		data, ok := content.Data[item.Key]
		switch {
		case ok:
			add(item.Path, data, item.Mode, item.UID, item.GID)
		case !v.spec.Optional:
			return projector.Payload{}, fmt.Errorf(`%w: %s has no key %q, which items[%d] names; add the key, or set optional: "true" to go without it`,
				ErrPrecondition, v.origin(), item.Key, i)
		}
	}
	return p, v.checkSize(p, limits)
}

func (v *volume) checkSize(p projector.Payload, limits Limits) error {
	if size := p.Size(); size > limits.Bytes {
		return fmt.Errorf("%w: the files of %s hold %d bytes, more than the %d that a volume may hold (--max-volume-bytes)",
			ErrPrecondition, v.origin(), size, limits.Bytes)
	}
	if len(p.Files) > limits.Files {
		return fmt.Errorf("%w: %s makes %d files, more than the %d that a volume may have (--max-volume-files); pick keys with items",
			ErrPrecondition, v.origin(), len(p.Files), limits.Files)
	}
	return nil
}

// origin names where the content comes from, for error messages.
func (v *volume) origin() string {
	if v.hasObject() {
		return v.object.String()
	}
	return fmt.Sprintf("the Secret of nodePublishSecretRef of pod %q", v.pod.Namespace+"/"+v.pod.Name)
}

// room returns what a tmpfs needs to hold two versions of p at once: during a refresh the old one is still there.
func room(p projector.Payload) tmpfs.Limits {
	page := uint64(os.Getpagesize()) // 64 KiB on some arm64 and ppc64le
	var bytes, inodes uint64
	directories, names := map[string]bool{}, map[string]bool{}
	for _, f := range p.Files {
		bytes += (uint64(len(f.Data)) + page - 1) / page * page
		inodes++
		name, _, _ := strings.Cut(f.Path, "/")
		names[name] = true
		for i := range f.Path {
			if f.Path[i] == '/' {
				directories[f.Path[:i]] = true
			}
		}
	}
	// A long link takes a page, and each visible name is a link. The generation is a directory as well.
	links := uint64(len(names))
	perVersion := inodes + uint64(len(directories)) + 1
	// Beyond two versions: the root, ..data, ..data_tmp, and the links, of which a refresh replaces one by one.
	const spare = 16
	return tmpfs.Limits{
		Bytes:  2*bytes + (2*links+spare)*page,
		Inodes: 2*perVersion + 2*links + spare,
	}
}

func or(value *uint32, otherwise uint32) uint32 {
	if value != nil {
		return *value
	}
	return otherwise
}

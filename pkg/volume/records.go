// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"maps"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// toRecord returns the record of the volume: the description of the volume without content.
func (v *volume) toRecord() record.Volume {
	s := v.spec
	r := record.Volume{
		VolumeID: v.id, TargetPath: v.targetPath, Pod: v.pod, MountGroup: v.mountGroup, User: v.user,
		Allocatable: maps.Clone(v.allocatable), Size: v.shown.size, Device: v.identity.Device, FSID: v.identity.FSID,
		Spec: record.Spec{
			Volume: s.Volume, UID: s.UID, GID: s.GID, Mode: s.Mode, DefaultUser: s.DefaultUser, DirMode: s.DirMode,
			Refresh: string(s.Refresh), MountPoints: s.MountPoints, SubPaths: s.SubPaths,
		},
	}
	if s.Layout != attributes.LayoutLinks {
		r.Spec.Layout = string(s.Layout)
	}
	for path, p := range s.Paths {
		if r.Spec.Paths == nil {
			r.Spec.Paths = map[string]record.Permissions{}
		}
		r.Spec.Paths[path] = record.Permissions(p)
	}
	for path, t := range s.Templates {
		if r.Spec.Templates == nil {
			r.Spec.Templates = map[string]string{}
		}
		r.Spec.Templates[path] = string(t)
	}
	for _, s := range s.Sources {
		written := record.Source{Kind: string(s.Object.Kind), Name: s.Object.Name, Optional: s.Optional, Mode: s.Mode}
		for _, item := range s.Items {
			written.Items = append(written.Items, record.Item(item))
		}
		r.Spec.Sources = append(r.Spec.Sources, written)
	}
	return r
}

func fromRecord(r record.Volume) *volume {
	v := &volume{
		id: r.VolumeID, targetPath: r.TargetPath, pod: r.Pod, mountGroup: r.MountGroup, user: r.User,
		allocatable: r.Allocatable,
		identity:    tmpfs.Identity{Device: r.Device, FSID: r.FSID}, shown: shown{size: r.Size},
	}
	spec := attributes.Spec{
		Volume: r.Spec.Volume, UID: r.Spec.UID, GID: r.Spec.GID, Mode: r.Spec.Mode, DefaultUser: r.Spec.DefaultUser,
		DirMode: r.Spec.DirMode, Refresh: attributes.Refresh(r.Spec.Refresh),
		Layout:      cmp.Or(attributes.Layout(r.Spec.Layout), attributes.LayoutLinks),
		MountPoints: r.Spec.MountPoints, SubPaths: r.Spec.SubPaths,
	}
	for path, p := range r.Spec.Paths {
		if spec.Paths == nil {
			spec.Paths = map[string]attributes.Permissions{}
		}
		spec.Paths[path] = attributes.Permissions(p)
	}
	for path, t := range r.Spec.Templates {
		if spec.Templates == nil {
			spec.Templates = map[string]attributes.Template{}
		}
		spec.Templates[path] = attributes.Template(t)
	}
	for _, written := range r.Spec.Sources {
		s := attributes.Source{
			Object:   attributes.Object{Kind: attributes.Kind(written.Kind), Name: written.Name},
			Optional: written.Optional, Mode: written.Mode,
		}
		for _, item := range written.Items {
			s.Items = append(s.Items, attributes.Item(item))
		}
		spec.Sources = append(spec.Sources, s)
	}
	v.setSpec(spec)
	return v
}

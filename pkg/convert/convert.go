// SPDX-License-Identifier: Apache-2.0

// Package convert edits the text of manifests. It makes containers mount volumes of this driver in place of Kubernetes'
// own volumes, and back.
//
// In the conversion to the driver, each mounted secret, configMap, downwardAPI and projected volume of a pod stays as
// it is. At the end of the list, convert adds a csi volume that names it in the attribute "volume", and it points the
// mounts to the csi volume. In the conversion back, convert removes the csi volume and points the mounts to the volume
// that it names. All other bytes stay.
//
// The package verifies each edit: it reads the edited text again, which must differ in these values only. It reverts
// each edit to the driver, which must restore the same bytes. Volumes that cannot be converted are listed with the
// reason.
// reason.
package convert

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// Options are the options of a conversion.
type Options struct {
	// Back converts from the driver's volumes to Kubernetes' own.
	Back bool
	// UID and GID become attributes of the driver's volumes. With nil, the volumes do not get the attribute.
	UID, GID *uint32
}

// Left is a volume that stays as it is, or a document that cannot be read.
type Left struct {
	Line       int    // in the file
	Unreadable bool   // the document cannot be read
	Object     string // such as Deployment/web; empty if the volume is in no object
	Volume     string // the name of the volume
	Reason     string
}

// Result is a converted file.
type Result struct {
	Text      string
	Converted int // the number of converted volumes
	Left      []Left
	// Notes are hints about converted volumes.
	Notes []Left
}

// File converts all volumes of a file.
func File(f *manifest.File, o Options) Result {
	var (
		r    Result
		text strings.Builder
		done int // the offset in the file's text
	)
	for _, d := range f.Documents {
		if d.Err != nil {
			r.Left = append(r.Left, Left{Line: d.Err.Line, Unreadable: true, Reason: d.Err.Message})
			continue
		}
		edited, converted, left, notes := document(d, o)
		text.WriteString(f.Text[done:d.Start] + edited)
		done = d.Start + len(d.Text)
		r.Converted += converted
		r.Left = append(r.Left, left...)
		r.Notes = append(r.Notes, notes...)
	}
	r.Text = text.String() + f.Text[done:]
	slices.SortStableFunc(r.Left, func(a, b Left) int { return cmp.Compare(a.Line, b.Line) })
	return r
}

// change is the conversion of one volume.
type change struct {
	left  Left // describes the volume, for the case that the change turns out to be impossible
	edits []edit
	// volumes is the list of the pod's volumes, to which the csi volume is added or from which it is removed. mounts are
	// the entries of volumeMounts that get another volume. Both are paths in the document.
	volumes string
	removed *manifest.Node
	added   *corev1.Volume
	mounts  map[string]string // the new name of the volume, by the path of the mount
}

// document converts all volumes of a document.
func document(d *manifest.Document, o Options) (text string, converted int, left, notes []Left) {
	p := plan(d, o)
	if !o.Back {
		d.Elsewhere(p.elsewhere)
	}
	if text, ok := apply(d, o, p.changes); ok {
		return text, len(p.changes), p.left, p.notes
	}
	// At least one of the changes is impossible. Try them one by one.
	var good []change
	text = d.Text
	for _, c := range p.changes {
		if edited, ok := apply(d, o, append(good, c)); ok {
			text, good = edited, append(good, c)
			continue
		}
		c.left.Reason = "its text cannot be edited by itself: write its volumes and mounts without anchors, " +
			"aliases and tags, each in lines of its own"
		p.left = append(p.left, c.left)
	}
	return text, len(good), p.left, p.notes
}

// apply applies changes to the text of a document. ok is false unless the result is the expected one.
func apply(d *manifest.Document, o Options, changes []change) (text string, ok bool) {
	if len(changes) == 0 {
		return d.Text, true
	}
	text, ok = edited(d, changes)
	if !ok {
		return "", false
	}
	after, ok := reread(text)
	if !ok || !reflect.DeepEqual(expected(after, nil), expected(d, changes)) {
		return "", false
	}
	return text, o.Back || back(after) == back(d) // If d has no volume of the driver, back(d) is d.
}

// back removes the volumes of the driver from a document, as far as possible.
func back(d *manifest.Document) string {
	changes := slices.DeleteFunc(plan(d, Options{Back: true}).changes, func(c change) bool { return c.edits == nil })
	text, ok := edited(d, changes)
	if !ok {
		return d.Text
	}
	return text
}

func edited(d *manifest.Document, changes []change) (text string, ok bool) {
	var edits []edit
	for _, c := range changes {
		if c.edits == nil {
			return "", false
		}
		edits = append(edits, c.edits...)
	}
	return replace(d.Text, edits)
}

// reread reads the edited text of a document. ok is false if the text is not a single document any more.
func reread(text string) (*manifest.Document, bool) {
	f := manifest.Parse("", text)
	return f.Documents[0], len(f.Documents) == 1 && f.Documents[0].Err == nil
}

// expected returns the value of a document after changes.
func expected(d *manifest.Document, changes []change) any {
	removed, added, renamed := map[*manifest.Node]bool{}, map[string][]any{}, map[string]string{}
	for _, c := range changes {
		removed[c.removed] = true
		if c.added != nil {
			value, _ := runtime.DefaultUnstructuredConverter.ToUnstructured(c.added) // This cannot fail for a volume.
			added[c.volumes] = append(added[c.volumes], value)
		}
		maps.Copy(renamed, c.mounts)
	}
	return d.Root.Any(func(path string, n *manifest.Node, value any) any {
		switch value := value.(type) {
		case map[string]any:
			if name, ok := renamed[path]; ok {
				value["name"] = name
			}
		case []any:
			kept := []any{}
			for i, item := range n.Items {
				if !removed[item] {
					kept = append(kept, value[i])
				}
			}
			return append(kept, added[path]...)
		}
		return value
	})
}

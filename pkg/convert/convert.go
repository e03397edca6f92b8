// SPDX-License-Identifier: Apache-2.0

// Package convert rewrites manifests: Secret, ConfigMap and projected volumes of Kubernetes to volumes of this driver, and back.
//
// It edits the text of a volume's source and leaves every other byte alone, comments, order and indentation among them. Each edit is
// proven before it counts: the document is read again, the volume must mean what it is to mean, and nothing else may have changed. A
// volume whose meaning can't be kept, or whose spelling can't be edited, stays as it is, with the reason.
package convert

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// Options say what to do.
type Options struct {
	// Native converts volumes of this driver to Kubernetes' own, and not the other way.
	Native bool
	// UID and GID are written into volumes that become this driver's, unless they have a defaultUser. Nil: not.
	UID, GID *uint32
}

// Result is what became of a file.
type Result struct {
	Text      string
	Converted int    // volumes
	Left      []Left // volumes that stay as they are, by line
	Notes     []Note // by line
}

// Note is what to know of a volume that was converted.
type Note struct {
	Line   int    // in the file, from 1
	Object string // such as Deployment/web
	Volume string // its name
	Text   string
}

// Left is a volume that could not be converted, or a document that can't be read.
type Left struct {
	Line   int    // in the file, from 1
	Object string // such as Deployment/web; empty for a document
	Volume string // its name
	Reason string
}

// File converts all volumes of all pods and pod templates in a file.
func File(f *manifest.File, o Options) Result {
	var (
		result Result
		out    strings.Builder
		at     int
	)
	for _, d := range f.Documents {
		text := d.Text
		if d.Err != nil {
			result.Left = append(result.Left, Left{Line: d.Err.Line, Reason: d.Err.Message})
		} else {
			var left []Left
			var good []change
			text, good, left = document(d, o)
			result.Converted += len(good)
			for _, c := range good {
				for _, note := range c.notes {
					result.Notes = append(result.Notes, Note{Line: c.left.Line, Object: c.left.Object, Volume: c.left.Volume, Text: note})
				}
			}
			slices.SortStableFunc(left, func(a, b Left) int { return cmp.Compare(a.Line, b.Line) })
			result.Left = append(result.Left, left...)
		}
		out.WriteString(f.Text[at:d.Start])
		out.WriteString(text)
		at = d.Start + len(d.Text)
	}
	out.WriteString(f.Text[at:])
	result.Text = out.String()
	return result
}

// change is a volume that is to become another.
type change struct {
	pod    manifest.Pod
	volume manifest.Node
	key    string // of its source as it is to be
	want   inTree
	// podUser is the user that the containers of its pod have in common.
	podUser *uint32
	edits   []edit
	notes   []string
	left    Left
}

// document returns what becomes of a document, with the changes that were made and the volumes that stay.
func document(d *manifest.Document, o Options) (text string, made []change, left []Left) {
	var changes, failed []change
	for _, object := range d.Objects() {
		for _, pod := range object.Pods() {
			for i, volume := range pod.Spec().Get("volumes").Items() {
				c, skip, err := plan(pod, volume, o)
				if skip {
					continue
				}
				name := volume.Get("name").Text()
				if name == "" {
					name = fmt.Sprintf("volumes[%d]", i)
				}
				c.left = Left{Line: volume.Line(), Object: object.Name(), Volume: name}
				if err != nil {
					c.left.Reason = err.Error()
					failed = append(failed, c)
					continue
				}
				changes = append(changes, c)
			}
		}
	}
	good, bad := proven(d, changes, o)
	bad = append(bad, failed...)
	if !o.Native {
		good, bad = withoutDeclarations(good, bad)
	}
	for _, c := range bad {
		left = append(left, c.left)
	}
	text, wrong, err := edited(d, good, o)
	if err == nil && len(wrong) > 0 {
		err = errNotEditable
	}
	if err != nil { // not seen: each part of them was proven
		for _, c := range good {
			c.left.Reason = err.Error()
			left = append(left, c.left)
		}
		return d.Text, nil, left
	}
	return text, good, left
}

// proven tells the changes that do what they are to do from those that do not, which have the reason then. If something is wrong with one, the
// others need not suffer. Mostly the volumes that are not what they were to be are known after one attempt; else halving finds them.
func proven(d *manifest.Document, changes []change, o Options) (good, bad []change) {
	if len(changes) == 0 {
		return nil, nil
	}
	_, wrong, err := edited(d, changes, o)
	switch {
	case err != nil && len(changes) == 1:
		changes[0].left.Reason = err.Error()
		return nil, changes
	case err != nil:
		half := len(changes) / 2
		good, bad = proven(d, changes[:half:half], o)
		moreGood, moreBad := proven(d, changes[half:], o)
		return append(good, moreGood...), append(bad, moreBad...)
	}
	for _, c := range changes {
		if err := wrong[c.volume]; err != nil {
			c.left.Reason = err.Error()
			bad = append(bad, c)
		} else {
			good = append(good, c)
		}
	}
	return good, bad
}

// plan finds out what a volume is to become. skip says that the volume is none of those that convert is for.
func plan(pod manifest.Pod, volume manifest.Node, o Options) (c change, skip bool, err error) {
	key := sourceKey(volume, o)
	if key == "" {
		return change{}, true, nil
	}
	podUser := source.CommonUser(pod.RunAs())
	c = change{pod: pod, volume: volume, podUser: podUser}
	if len(volume.Entries()) > 2 {
		return c, false, errors.New("it has more than a name and one source, which the API server refuses")
	}
	if volume.Document().Anchored(volume) {
		return c, false, errors.New("it is, or is within, something that other places use by a YAML alias or tag: write it out, and convert again")
	}
	if again := volume.Get(key).Repeated(); len(again) > 0 {
		return c, false, fmt.Errorf("%s is given twice", again[0].Name)
	}
	if o.Native {
		return planInTree(c)
	}
	if shape(key) == downwardShape {
		return c, false, errors.New("convert can't write a downwardAPI volume of its own: make it a projected volume with one source, downwardAPI, and convert again")
	}
	for _, mode := range volume.Get(key).DecimalModes() {
		write := mode.Octal
		if volume.Document().JSON {
			write = strconv.FormatInt(mode.Value, 10)
		}
		c.notes = append(c.notes, fmt.Sprintf("%s: %s, which it still does; if %s was meant, write %s, and convert again", mode.Field, mode, mode.Octal, write))
	}
	return planDriver(c, pod, shape(key), o)
}

// sourceKey is the key of the source that is to be converted; "" if the volume has none.
func sourceKey(volume manifest.Node, o Options) string {
	if o.Native {
		if volume.Get("csi", "driver").String() == attributes.Driver {
			return "csi"
		}
		return ""
	}
	for _, s := range []shape{secretShape, configMapShape, sourcesShape, downwardShape} {
		if volume.Get(string(s)).Exists() {
			return string(s)
		}
	}
	return ""
}

func planInTree(c change) (change, bool, error) {
	csi := c.volume.Get("csi")
	if again := csi.Get("volumeAttributes").Repeated(); len(again) > 0 {
		return c, false, fmt.Errorf("%s is given twice", again[0].Name)
	}
	for _, e := range csi.Entries() {
		switch e.Name {
		case "driver", "readOnly", "fsType", "volumeAttributes", "nodePublishSecretRef":
		default:
			return c, false, fmt.Errorf("csi.%s is not known", e.Name)
		}
	}
	podUser := c.podUser
	if hadNoUser(csi) {
		podUser = nil
	}
	want, reasons, err := expressed(csi, podUser)
	if err != nil {
		return c, false, err
	}
	if len(reasons) > 0 {
		return c, false, errors.New(strings.Join(reasons, "; "))
	}
	c.key, c.want = string(want.Shape), want
	if attrs := csi.Get("volumeAttributes"); attrs.Style() == manifest.Flow && want.User != nil && !attrs.Get("uid").Exists() {
		c.notes = append(c.notes, fmt.Sprintf("defaultUser: %d is the pod's runAsUser, to whom the files belonged; remove it if the volume had none before", *want.User))
	}
	c.edits, err = toInTree(c.volume, want)
	return c, false, err
}

func planDriver(c change, pod manifest.Pod, s shape, o Options) (change, bool, error) {
	meaning, err := readInTree(c.volume.Get(string(s)), s)
	if err != nil {
		return c, false, err
	}
	if err := onlyInTree(pod, c.volume.Get("name").Text(), meaning); err != nil {
		return c, false, err
	}
	if meaning.User == nil && o.UID == nil && c.podUser == nil {
		if mode, widened := readByFSGroup(pod, meaning); widened {
			return c, false, fmt.Errorf("files of mode %04o would belong to root, and nobody else could read them: the pod's fsGroup lets its group read Kubernetes' own volumes, "+
				"but widens no mode of this driver's; give --uid, or the pod a runAsUser", mode)
		}
	}
	if meaning.User == nil {
		meaning.User = user(o.UID)
		if o.UID == nil {
			meaning.User = user(c.podUser)
		}
		c.edits, err = toDriver(c.volume, s, readAgain(meaning, c.volume.Get(string(s))), o, c.podUser)
	} else {
		c.edits, err = toDriver(c.volume, s, meaning, o, c.podUser)
	}
	c.key, c.want = "csi", meaning
	return c, false, err
}

// onlyInTree says what Kubernetes does for the volume of a pod, by its name and its meaning, and this driver can't. The policy of fsUser leaves
// alone what these are about, too (deploy/chart/templates/_fs-user.tpl).
func onlyInTree(pod manifest.Pod, name string, v inTree) error {
	if pod.Windows() {
		return errors.New("the pod is for Windows, and this driver for Linux")
	}
	var paths []string
	for _, file := range v.files() {
		paths = append(paths, file.Path)
	}
	for _, n := range pod.MountedBeneath(name) {
		if !n.SuppliedBy(paths) {
			return fmt.Errorf("%s is mounted beneath it (line %d): Kubernetes makes a directory for that in its own volumes, but not in those of CSI; mount it elsewhere",
				n.Path, n.Node.Line())
		}
	}
	for _, c := range pod.Containers() {
		for _, m := range c.Mounts {
			if m.Volume == name && v.optional() && m.Node.Get("subPath").String()+m.Node.Get("subPathExpr").String() != "" {
				return fmt.Errorf("it is optional and mounted by subPath (line %d), and only Kubernetes makes a directory where the file is missing: mount it as a directory, "+
					"or let it not be optional", m.Node.Line())
			}
		}
	}
	for _, source := range v.Sources {
		if source.DownwardAPI == nil {
			continue
		}
		for _, item := range source.DownwardAPI.Items {
			ref := item.ResourceFieldRef
			if ref == nil {
				continue
			}
			switch known, sets := pod.Sets(ref.ContainerName, ref.Resource); {
			case !known:
				return fmt.Errorf("it shows %s of a container %q, which the pod does not have: name one of its containers", ref.Resource, ref.ContainerName)
			case !sets && strings.HasPrefix(ref.Resource, "limits."):
				return fmt.Errorf("it shows a limit that the container does not set (%s of %q), in place of which Kubernetes tells what the node has: set the limit",
					ref.Resource, ref.ContainerName)
			}
		}
	}
	return nil
}

// readByFSGroup finds a file without an owner of its own that only the pod's fsGroup lets its containers read: in Kubernetes' own volumes kubelet adds
// 0440 to each mode then.
func readByFSGroup(pod manifest.Pod, v inTree) (mode int32, widened bool) {
	if _, given := pod.Spec().Get("securityContext", "fsGroup").Scalar().(int); !given {
		return 0, false
	}
	for _, file := range v.files() {
		if file.Mode == nil {
			file.Mode = v.Mode
		}
		if file.User == nil && file.Mode != nil && *file.Mode&0o040 == 0 {
			return *file.Mode, true
		}
	}
	return 0, false
}

// readAgain is v with the user that the volume itself names.
func readAgain(v inTree, source manifest.Node) inTree {
	if !source.Get("defaultUser").Exists() {
		v.User = nil
	}
	return v
}

// withoutDeclarations takes out the volumes that are there for the Node authorizer only: no container mounts them, and volumes of the driver
// name their objects, be it one that becomes so now. Of these only the mounted ones count, else two that nobody mounts would keep each other.
func withoutDeclarations(good, bad []change) (_, _ []change) {
	type reference struct {
		pod    manifest.Node
		object attributes.Object
	}
	named, seen := map[reference]bool{}, map[manifest.Node]bool{}
	add := func(pod manifest.Pod, objects []attributes.Object) {
		for _, object := range objects {
			named[reference{pod.Node, object}] = object.Name != ""
		}
	}
	for _, c := range slices.Concat(good, bad) {
		if seen[c.pod.Node] {
			continue
		}
		seen[c.pod.Node] = true
		for _, volume := range c.pod.Spec().Get("volumes").Items() {
			add(c.pod, driverObjects(volume))
		}
	}
	mounted := func(c change) bool { return c.pod.Mounts(c.volume.Get("name").Text()) }
	for _, c := range good {
		if mounted(c) {
			add(c.pod, inTreeObjects(c.volume))
		}
	}
	declares := func(c change) bool {
		objects := inTreeObjects(c.volume)
		return len(objects) > 0 && !mounted(c) && !slices.ContainsFunc(objects, func(object attributes.Object) bool { return !named[reference{c.pod.Node, object}] })
	}
	return slices.DeleteFunc(good, declares), slices.DeleteFunc(bad, declares)
}

// driverObjects are those that a volume of the driver names, whatever else is wrong with it.
func driverObjects(volume manifest.Node) (objects []attributes.Object) {
	if volume.Get("csi", "driver").String() != attributes.Driver {
		return nil
	}
	values := map[string]string{}
	for _, name := range []string{"secretName", "configMapName", "sources"} {
		if text := volume.Get("csi", "volumeAttributes", name).String(); text != "" {
			values[name] = text
		}
	}
	spec, _ := attributes.Parse(values, false)
	for _, source := range spec.Sources {
		objects = append(objects, source.Object)
	}
	return objects
}

// inTreeObjects are those that one of Kubernetes' own volumes names, whether it can be converted or not. What is no object has no name.
func inTreeObjects(volume manifest.Node) (objects []attributes.Object) {
	switch s := shape(sourceKey(volume, Options{})); s {
	case secretShape:
		return []attributes.Object{{Kind: attributes.Secret, Name: volume.Get(string(s), "secretName").String()}}
	case configMapShape:
		return []attributes.Object{{Kind: attributes.ConfigMap, Name: volume.Get(string(s), "name").String()}}
	}
	kinds := map[string]attributes.Kind{"secret": attributes.Secret, "configMap": attributes.ConfigMap}
	for _, entry := range volume.Get(string(sourcesShape), "sources").Items() {
		for _, e := range entry.Entries() {
			object := attributes.Object{Kind: kinds[e.Name]}
			if object.Kind != "" {
				object.Name = e.Value.Get("name").String()
			}
			objects = append(objects, object)
		}
	}
	return objects
}

// edited makes the changes and proves them. The volumes that are not what they were to be are wrong; any other difference is an error.
func edited(d *manifest.Document, changes []change, o Options) (text string, wrong map[manifest.Node]error, err error) {
	if len(changes) == 0 {
		return d.Text, nil, nil
	}
	p := proof{expected: map[manifest.Node]change{}, wrong: map[manifest.Node]error{}, options: o, budget: maxCompared}
	var edits []edit
	for _, c := range changes {
		edits = append(edits, c.edits...)
		p.expected[c.volume] = c
	}
	text, ok := apply(d.Text, edits)
	if !ok {
		return "", nil, errNotEditable
	}
	after := manifest.Parse("", text)
	if len(after.Documents) != 1 || after.Documents[0].Err != nil || after.Documents[0].JSON != d.JSON {
		return "", nil, errNotEditable
	}
	if !p.same(d.Root, after.Documents[0].Root) {
		return "", nil, errNotEditable
	}
	return text, p.wrong, nil
}

// maxCompared and maxDepth bound the values of a document that a proof compares, against aliases of aliases, and values within themselves.
const (
	maxCompared = 1_000_000
	maxDepth    = 1000
)

// proof compares a document with what became of it.
type proof struct {
	expected map[manifest.Node]change
	wrong    map[manifest.Node]error
	options  Options
	budget   int
	depth    int
}

// same reports whether nothing is different but the volumes that were to change.
func (p *proof) same(before, after manifest.Node) bool {
	p.depth++
	defer func() { p.depth-- }()
	if p.budget--; p.budget < 0 || p.depth > maxDepth {
		return false
	}
	if c, ok := p.expected[before]; ok {
		if err := p.became(c, after); err != nil {
			p.wrong[before] = err
		}
		return true
	}
	a, b := before.Entries(), after.Entries()
	if len(a) != len(b) || before.Scalar() != after.Scalar() || before.IsMapping() != after.IsMapping() || before.IsList() != after.IsList() {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || !p.same(a[i].Value, b[i].Value) {
			return false
		}
	}
	return slices.EqualFunc(before.Items(), after.Items(), p.same)
}

// became checks that a volume is now what it was to be.
func (p *proof) became(c change, volume manifest.Node) error {
	if volume.Get("name").Scalar() != c.volume.Get("name").Scalar() || len(volume.Entries()) != len(c.volume.Entries()) {
		return errNotEditable
	}
	became := volume.Get(c.key)
	if p.options.Native {
		v, err := readInTree(became, shape(c.key))
		if err != nil {
			return err
		}
		if !v.equal(c.want) {
			return errNotEditable
		}
		return nil
	}
	values, err := attributesOf(became.Get("volumeAttributes"))
	if err != nil {
		return errNotEditable
	}
	spec, errs := attributes.Parse(values, false)
	if len(errs) > 0 {
		return fmt.Errorf("this driver refuses it: %w", errs.ToAggregate())
	}
	if gid := p.options.GID; (spec.GID == nil) != (gid == nil) || gid != nil && *spec.GID != *gid {
		return errNotEditable
	}
	spec.GID = nil
	v, _ := express(spec, c.want.Shape, c.podUser)
	if !v.equal(c.want) || became.Get("driver").String() != attributes.Driver || became.Get("readOnly").Scalar() != true {
		return errNotEditable
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// kubeletPrefix is the prefix of the keys that kubelet adds to volume_context. The pod's author does not write them,
// and csi.storage.k8s.io/serviceAccount.tokens holds credentials: no message may contain such a key or its value.
const kubeletPrefix = "csi.storage.k8s.io/"

const (
	defaultSecretMode uint32 = 0o400
	defaultMode       uint32 = 0o444
	defaultDirMode    uint32 = 0o755
	// defaultDescribedMode is the API's default, 0644, for each type of volume.
	defaultDescribedMode = uint32(corev1.SecretVolumeSourceDefaultMode)
)

// defaultModeOf returns the default mode of the files of an object of this kind: 0400 for a Secret, and 0444 for
// others.
func defaultModeOf(kind Kind) uint32 {
	if kind == Secret || kind == "" {
		return defaultSecretMode
	}
	return defaultMode
}

// Parse turns the volume_context of a NodePublishVolumeRequest into a Spec. The volume_context contains the pod
// author's volumeAttributes and kubelet's own keys.
//
// requestHasSecrets means that the request carries the data of the volume's nodePublishSecretRef. Then the attributes
// must name no content; otherwise they must name exactly one. Parse ignores keys under csi.storage.k8s.io/, which are
// kubelet's. Any other unknown key is an error, because a misspelt "mode" or "optional" must not go unnoticed.
//
// Either the list is empty, or the Spec is zero. The list is sorted by key and holds all problems up to a fixed number.
// If there are more, the last entry has their number. Each problem names its place as volumeAttributes[key], the
// shortened value, and the rule with its remedy. If the Spec has a Volume, call Describe next.
func Parse(volumeContext map[string]string, requestHasSecrets bool) (Spec, field.ErrorList) {
	p := parser{spec: Spec{DirMode: defaultDirMode, Refresh: RefreshWatch, Layout: LayoutLinks}}
	if requestHasSecrets {
		p.origins = append(p.origins, "nodePublishSecretRef")
	}
	for _, key := range slices.Sorted(maps.Keys(volumeContext)) {
		if !strings.HasPrefix(key, kubeletPrefix) {
			p.attribute(key, volumeContext[key])
		}
	}
	p.origin()
	if len(p.errs) > 0 {
		return Spec{}, present(p.errs)
	}
	return p.spec, nil
}

type parser struct {
	spec     Spec
	object   Object
	optional *bool
	origins  []string // the attributes that set the origin of the content
	errs     field.ErrorList
}

// attribute reads one attribute into the spec.
func (p *parser) attribute(key, value string) {
	at := attribute(key)
	name, file, ofFile := strings.Cut(key, "/")
	switch {
	case ofFile && slices.Contains(PathNames(), name):
		p.ofFile(at, name, file, value)
		return
	case !slices.Contains(Names(), key):
		p.errs = append(p.errs, field.Forbidden(at, unknownAttribute(key)))
		return
	case slices.Contains(originNames(), key):
		p.origins = append(p.origins, key) // Even an empty value counts, so that one mistake makes one message.
	}
	if value == "" {
		p.errs = append(p.errs, empty(at))
		return
	}
	if problem := p.set(key, value); problem != "" {
		p.errs = append(p.errs, field.Invalid(at, short(value), problem))
	}
}

// set reads the value of a known attribute. It returns the broken rule, or "".
func (p *parser) set(key, value string) (problem string) {
	switch key {
	case "secretName":
		p.object = Object{Secret, value}
		return objectNameProblem(value)
	case "configMapName":
		p.object = Object{ConfigMap, value}
		return objectNameProblem(value)
	case "volume":
		p.spec.Volume = value
		return volumeNameProblem(value)
	case "uid":
		p.spec.UID, problem = idFromText(value)
	case "gid":
		p.spec.GID, problem = idFromText(value)
	case "mode":
		p.spec.Mode, problem = modeFromText(value)
	case "dirMode":
		var mode *uint32
		if mode, problem = modeFromText(value); mode != nil {
			p.spec.DirMode = *mode
		}
	case "optional":
		optional := value == "true"
		p.optional = &optional
		if !optional && value != "false" {
			return optionalRule
		}
	case "refresh":
		p.spec.Refresh = Refresh(value)
		return refreshProblem(p.spec.Refresh)
	case "layout":
		p.spec.Layout = Layout(value)
		return layoutProblem(p.spec.Layout)
	}
	return problem
}

// ofFile reads an attribute of one file: uid/PATH, gid/PATH, mode/PATH or template/PATH.
func (p *parser) ofFile(at *field.Path, name, file, value string) {
	clean, problem := CleanPath(file)
	switch {
	case problem != "":
		p.errs = append(p.errs, field.Invalid(at, short(file), "the path "+problem))
		return
	case clean != file:
		p.errs = append(p.errs, field.Invalid(at, short(file),
			"the path must be in its shortest form, as path.Clean in Go makes it"))
		return
	case value == "":
		p.errs = append(p.errs, empty(at))
		return
	}
	if name == "template" {
		p.template(at, file, Template(value))
		return
	}
	if p.spec.Paths == nil {
		p.spec.Paths = map[string]Permissions{}
	}
	permissions := p.spec.Paths[file]
	switch name {
	case "uid":
		permissions.UID, problem = idFromText(value)
	case "gid":
		permissions.GID, problem = idFromText(value)
	case "mode":
		permissions.Mode, problem = modeFromText(value)
	}
	p.spec.Paths[file] = permissions
	if problem != "" {
		p.errs = append(p.errs, field.Invalid(at, short(value), problem))
	}
}

func (p *parser) template(at *field.Path, file string, t Template) {
	if p.spec.Templates == nil {
		p.spec.Templates = map[string]Template{}
	}
	p.spec.Templates[file] = t
	if value, problem := t.problem(); problem != "" {
		p.errs = append(p.errs, field.Invalid(at, value, problem))
	}
}

// origin checks that the attributes set exactly one origin of the content, and makes its source.
func (p *parser) origin() {
	switch {
	case len(p.origins) == 0:
		p.errs = append(p.errs, NoObject())
	case len(p.origins) > 1:
		p.errs = append(p.errs, field.Invalid(root(), strings.Join(p.origins, ", "), oneOriginRule))
	case p.optional != nil && p.object == Object{}:
		p.errs = append(p.errs, field.Forbidden(attribute("optional"), optionalPlaceRule))
	}
	if p.spec.Volume != "" {
		return
	}
	source := Source{Object: p.object, Mode: defaultModeOf(p.object.Kind)}
	if p.optional != nil {
		source.Optional = *p.optional
	}
	if p.spec.Mode != nil {
		source.Mode = *p.spec.Mode
	}
	p.spec.Sources = []Source{source}
}

// NoObject returns the error for attributes that name no content in a request without a Secret.
func NoObject() *field.Error { return field.Required(root(), noOriginRule) }

func empty(at *field.Path) *field.Error {
	return field.Required(at, "must not be empty: give a value or remove the attribute")
}

// CleanPath returns the shortest form of the path of a file within a volume, or the broken rule.
//
// It accepts the same paths as kubelet's AtomicWriter (validatePath in pkg/volume/util/atomic_writer.go): a path must
// stay in the volume, must not begin with "..", which is the prefix of the AtomicWriter's own names, and has at most
// 4096 bytes and elements of at most 255 bytes.
func CleanPath(text string) (clean, problem string) {
	clean = path.Clean(text)
	elements := strings.Split(text, "/")
	switch {
	case len(text) > maxPath:
		return "", pathLengthRule
	case strings.HasPrefix(text, "/"):
		return "", "must be relative to the volume: remove the leading '/'"
	case slices.Contains(elements, ".."):
		return "", "must not contain the element '..'"
	case clean == ".":
		return "", "must name a file"
	case strings.HasPrefix(clean, ".."):
		return "", "must not start with '..'"
	case strings.Contains(text, "\x00"):
		return "", "must not contain NUL"
	case slices.ContainsFunc(elements, func(e string) bool { return len(e) > maxElement }):
		return "", elementLengthRule
	}
	return clean, ""
}

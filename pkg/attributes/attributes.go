// SPDX-License-Identifier: Apache-2.0

// Package attributes is the vocabulary of a fsuser.csi.io volume: what a pod author may write under
// csi.volumeAttributes, what each value means, what holds when it is absent and what is refused.
//
// Parse turns the strings of a request into a Spec and reports every problem at once. Validate applies the same rules to a Spec
// that comes from elsewhere, such as a record read back from disk. Keys describes the vocabulary to people.
//
// The package decides by text alone: it asks no API server, touches no file and keeps no state, so the driver, lint and convert
// give the same answer. Two defaults it leaves to its caller, because they come from the pod: an absent uid (the pod's common
// runAsUser) and an absent gid (its fsGroup).
package attributes

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Kind tells the objects apart that a volume can project.
type Kind string

// The kinds of object, spelled as in the Kubernetes API.
const (
	Secret    Kind = "Secret"
	ConfigMap Kind = "ConfigMap"
	// Pod is the pod itself, whose fields the downward API projects.
	Pod Kind = "Pod"
)

// Object names what is projected. It has no namespace: it is always the pod's own.
type Object struct {
	Kind Kind
	Name string // a DNS-1123 subdomain; empty for the Pod, which can only be the volume's own
}

// Refresh says whether a volume follows its object.
type Refresh string

const (
	// RefreshWatch keeps the files current while the pod runs.
	RefreshWatch Refresh = "watch"
	// RefreshOff keeps the content as it was when the volume was published (asked for in kubernetes/kubernetes#118566).
	RefreshOff Refresh = "off"
)

// Item projects one key of the object to one file, like items[] of a Secret volume in the Kubernetes API.
type Item struct {
	// Key of the Secret or ConfigMap. Of the Pod it is what the API calls fieldPath, such as metadata.labels['app'], or
	// resource, such as limits.cpu.
	Key string
	// Container whose resource it is, and Divisor that it is counted in, a quantity; empty is 1. Both are empty but for resources.
	Container, Divisor string
	Path               string // file, relative to the volume's root; see ValidatePath

	// Mode (permission bits), UID and GID (0..2147483647) of this file. Nil means the volume's own.
	Mode, UID, GID *uint32
}

// IsResource reports whether the item of a Pod is a resource of a container, and not a field.
func (i Item) IsResource() bool { return isResource(i.Key) }

// Source is one object and what of it is projected.
type Source struct {
	// Object is the zero Object when the content comes with the request (the volume's nodePublishSecretRef).
	Object Object
	// Items to project. Nil (or empty) means every key, each at the path of its own name; the Pod always has items.
	Items []Item
	// Optional makes a missing object, or a missing key among Items, no error.
	Optional bool
	// Mode of files that have none of their own, permission bits only. Default 0400 for a Secret and for content of the request, else 0444.
	Mode uint32
}

// Spec is what the pod author asked for, checked and with defaults filled in.
type Spec struct {
	// Sources of the files, one at least. Only one that is alone can be content of the request.
	Sources []Source
	// UID and GID own files and directories, 0..2147483647. Nil when the request does not say: the caller decides by the pod.
	UID, GID *uint32
	// DirMode of directories, permission bits only. Default 0755.
	DirMode uint32
	// Refresh defaults to RefreshWatch.
	Refresh Refresh
}

// FromRequest reports whether the content comes with each publish request, as the data of the volume's nodePublishSecretRef.
func (s Spec) FromRequest() bool { return len(s.Sources) == 1 && s.Sources[0].Object == Object{} }

// Equal reports whether s and o ask for the same. Numbers are compared by value, not by pointer, and the order of sources and items
// counts.
func (s Spec) Equal(o Spec) bool {
	return s.DirMode == o.DirMode && s.Refresh == o.Refresh && equalNumber(s.UID, o.UID) && equalNumber(s.GID, o.GID) &&
		slices.EqualFunc(s.Sources, o.Sources, func(a, b Source) bool {
			return a.Object == b.Object && a.Optional == b.Optional && a.Mode == b.Mode && slices.EqualFunc(a.Items, b.Items, equalItem)
		})
}

func equalItem(a, b Item) bool {
	return a.Key == b.Key && a.Container == b.Container && a.Divisor == b.Divisor && a.Path == b.Path &&
		equalNumber(a.Mode, b.Mode) && equalNumber(a.UID, b.UID) && equalNumber(a.GID, b.GID)
}

// kubeletPrefix marks the keys that kubelet adds to volume_context. They are not the pod author's, and
// csi.storage.k8s.io/serviceAccount.tokens holds credentials: neither such a key nor its value may appear in a message.
const kubeletPrefix = "csi.storage.k8s.io/"

const (
	defaultSecretMode uint32 = 0o400
	defaultMode       uint32 = 0o444
	defaultDirMode    uint32 = 0o755
)

// Parse turns the volume_context of a NodePublishVolumeRequest, which is the pod author's volumeAttributes merged with kubelet's
// own keys, into a Spec.
//
// requestHasSecrets says that the request carries the data of the volume's nodePublishSecretRef; then no object may be named,
// else exactly one must be. Keys under csi.storage.k8s.io/ are kubelet's and are skipped; any other unknown key is an error, since
// a misspelt "mode" or "optional" must not pass in silence.
//
// Either the list is empty and the Spec passes Validate, or the Spec is zero. The list is sorted by key and holds all problems up
// to a fixed number, after which the last entry says how many there are. Each names its place as volumeAttributes[key], or
// volumeAttributes[items][2].path, the bad value shortened, and the rule with its remedy. The rules are those of the CSI driver's
// design and, for names, keys, paths, modes and ids, those of the Kubernetes API for Secret and ConfigMap volumes.
func Parse(volumeContext map[string]string, requestHasSecrets bool) (Spec, field.ErrorList) {
	spec := Spec{DirMode: defaultDirMode, Refresh: RefreshWatch}
	var (
		mode    *uint32
		one     Source   // what secretName or configMapName, items and optional say
		listed  []Source // what sources says
		ours    []string // attributes that belong to one
		origins []string // everything that says where the content comes from
		errs    field.ErrorList
	)
	if requestHasSecrets {
		origins = append(origins, "nodePublishSecretRef")
	}
	for _, key := range slices.Sorted(maps.Keys(volumeContext)) {
		if strings.HasPrefix(key, kubeletPrefix) {
			continue
		}
		path, value := attribute(key), volumeContext[key]
		if key == "secretName" || key == "configMapName" || key == "sources" {
			origins = append(origins, key) // an empty value counts: one mistake, one message
		}
		if value == "" && slices.Contains(keyNames(), key) {
			errs = append(errs, field.Required(path, "must not be empty: give a value or remove the attribute"))
			continue
		}

		var problem string
		var partErrs field.ErrorList
		switch key {
		case "secretName":
			one.Object = Object{Kind: Secret, Name: value}
			partErrs = validateName(path, value)
		case "configMapName":
			one.Object = Object{Kind: ConfigMap, Name: value}
			partErrs = validateName(path, value)
		case "sources":
			listed, partErrs = parseSources(path, value)
		case "uid":
			spec.UID, problem = idFromText(value)
		case "gid":
			spec.GID, problem = idFromText(value)
		case "mode":
			mode, problem = modeFromText(value)
		case "dirMode":
			var dirMode *uint32
			if dirMode, problem = modeFromText(value); dirMode != nil {
				spec.DirMode = *dirMode
			}
		case "items":
			ours = append(ours, key)
			one.Items, partErrs = parseItems(path, value)
		case "optional":
			ours = append(ours, key)
			one.Optional = value == "true"
			if !one.Optional && value != "false" {
				problem = `must be exactly "true" or "false"`
			}
		case "refresh":
			spec.Refresh = Refresh(value)
		default:
			errs = append(errs, field.Forbidden(path, unknownName("attribute", key, keyNames())))
		}
		if problem != "" {
			errs = append(errs, field.Invalid(path, short(value), problem))
		}
		errs = append(errs, partErrs...)
	}

	if len(origins) == 0 {
		errs = append(errs, NoObject())
	} else if len(origins) > 1 {
		errs = append(errs, field.Invalid(root(), strings.Join(origins, ", "),
			"only one of secretName, configMapName, sources and nodePublishSecretRef may be given: keep one, list several objects in sources"))
	}
	_, isList := volumeContext["sources"]
	if isList {
		for _, key := range ours {
			errs = append(errs, field.Forbidden(attribute(key), "belongs to each entry of sources: move it there"))
		}
		spec.Sources = listed
	} else {
		spec.Sources = []Source{one}
	}
	for i := range spec.Sources {
		source := &spec.Sources[i]
		switch {
		case mode != nil:
			source.Mode = *mode
		case source.Object.Kind == ConfigMap, source.Object.Kind == Pod:
			source.Mode = defaultMode
		default:
			source.Mode = defaultSecretMode
		}
	}

	// What could not even be read is left empty in spec; do not complain about it a second time.
	errs = append(errs, withoutKnown(validate(spec, isList), errs)...)
	if len(errs) > 0 {
		return Spec{}, present(errs)
	}
	return spec, nil
}

// NoObject is the error of attributes that name nothing to project, where the request brings no Secret either.
func NoObject() *field.Error {
	return field.Required(root(), "name the object to project: give secretName, configMapName or sources, or set the volume's nodePublishSecretRef")
}

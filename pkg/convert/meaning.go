// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

const (
	// inTreeMode is what Kubernetes fills in for an absent defaultMode.
	inTreeMode = 0o644
	// directoryMode is that of the directories in Kubernetes' own volumes.
	directoryMode = 0o755
)

// shape is how a volume's source is written: which object it names, or that it lists sources.
type shape string

const (
	secretShape    shape = "secret"
	configMapShape shape = "configMap"
	sourcesShape   shape = "projected"
	// downwardShape is not converted: on the way back it could not be told from a projected volume of one source.
	downwardShape shape = "downwardAPI"
)

// inTree is what one of Kubernetes' own volumes means.
type inTree struct {
	Shape   shape
	Mode    *int32 // nil if no file of it has the volume's mode
	User    *int64
	Sources []corev1.VolumeProjection
}

// equal reports whether two volumes mean the same.
func (v inTree) equal(o inTree) bool {
	a, errA := json.Marshal(v)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// files are those that the volume names. An object that is there as a whole is one without a path.
func (v inTree) files() []corev1.KeyToPath {
	var files []corev1.KeyToPath
	for _, source := range v.Sources {
		var items []corev1.KeyToPath
		switch {
		case source.Secret != nil:
			items = source.Secret.Items
		case source.ConfigMap != nil:
			items = source.ConfigMap.Items
		case source.DownwardAPI != nil:
			for _, item := range source.DownwardAPI.Items {
				items = append(items, corev1.KeyToPath{Path: item.Path, Mode: item.Mode, User: item.User})
			}
		}
		if len(items) == 0 {
			items = []corev1.KeyToPath{{}}
		}
		files = append(files, items...)
	}
	return files
}

// optional reports whether an object of it may be missing, or keys that it names.
func (v inTree) optional() bool {
	return slices.ContainsFunc(v.Sources, func(s corev1.VolumeProjection) bool {
		return s.Secret != nil && *s.Secret.Optional || s.ConfigMap != nil && *s.ConfigMap.Optional
	})
}

// readInTree decodes one of Kubernetes' own volumes. The error says what of it this driver does not do.
func readInTree(source manifest.Node, s shape) (inTree, error) {
	var (
		v    = inTree{Shape: s}
		mode *int32
	)
	switch s {
	case secretShape:
		var secret corev1.SecretVolumeSource
		if err := decode(source, &secret); err != nil {
			return inTree{}, err
		}
		mode, v.User = secret.DefaultMode, secret.DefaultUser
		v.Sources = []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: secret.SecretName}, Items: secret.Items, Optional: secret.Optional,
		}}}
	case configMapShape:
		var configMap corev1.ConfigMapVolumeSource
		if err := decode(source, &configMap); err != nil {
			return inTree{}, err
		}
		mode, v.User = configMap.DefaultMode, configMap.DefaultUser
		v.Sources = []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: configMap.LocalObjectReference, Items: configMap.Items, Optional: configMap.Optional,
		}}}
	default:
		var projected corev1.ProjectedVolumeSource
		if err := decode(source, &projected); err != nil {
			return inTree{}, err
		}
		mode, v.User, v.Sources = projected.DefaultMode, projected.DefaultUser, projected.Sources
	}
	if mode == nil {
		mode = new(int32)
		*mode = inTreeMode
	}
	usesMode := false
	for i := range v.Sources {
		if err := refused(v.Sources[i]); err != nil {
			return inTree{}, err
		}
		usesMode = normalize(&v.Sources[i]) || usesMode
	}
	if usesMode {
		v.Mode = mode
	}
	return v, nil
}

// refused names what no volume of the driver has.
func refused(p corev1.VolumeProjection) error {
	what := ""
	switch {
	case p.Secret != nil && p.Secret.Name == "", p.ConfigMap != nil && p.ConfigMap.Name == "":
		return errors.New("it names no object")
	case p.ServiceAccountToken != nil:
		what = "a serviceAccountToken"
	case p.ClusterTrustBundle != nil:
		what = "a clusterTrustBundle"
	case p.PodCertificate != nil:
		what = "a podCertificate"
	default:
		return nil
	}
	return fmt.Errorf("it has %s, which stays with Kubernetes: give it a projected volume of its own, and convert again", what)
}

// normalize writes out what is absent, and reports whether some file has the volume's mode.
func normalize(p *corev1.VolumeProjection) (usesMode bool) {
	off := func(optional **bool) {
		if *optional == nil {
			*optional = new(bool)
		}
	}
	keys := func(items []corev1.KeyToPath) []corev1.KeyToPath {
		for _, item := range items {
			usesMode = usesMode || item.Mode == nil
		}
		if len(items) == 0 {
			usesMode = true
			return nil
		}
		return items
	}
	switch {
	case p.Secret != nil:
		off(&p.Secret.Optional)
		p.Secret.Items = keys(p.Secret.Items)
	case p.ConfigMap != nil:
		off(&p.ConfigMap.Optional)
		p.ConfigMap.Items = keys(p.ConfigMap.Items)
	case p.DownwardAPI != nil:
		for i := range p.DownwardAPI.Items {
			item := &p.DownwardAPI.Items[i]
			usesMode = usesMode || item.Mode == nil
			if item.FieldRef != nil && item.FieldRef.APIVersion == "" {
				item.FieldRef.APIVersion = "v1"
			}
			if ref := item.ResourceFieldRef; ref != nil && ref.Divisor.IsZero() {
				ref.Divisor = resource.MustParse("1")
			}
		}
	}
	return usesMode
}

// decode reads a value into a type of the Kubernetes API, and refuses fields that the type does not have.
func decode(n manifest.Node, into any) error {
	value, err := n.Any()
	if err != nil {
		return err
	}
	if value == nil {
		return errors.New("it is empty")
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("the API server would refuse it: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// express says in Kubernetes' own words what a volume of the driver means in a pod whose containers have podUser in common. The reasons
// say what can't be expressed.
func express(spec attributes.Spec, s shape, podUser *uint32) (v inTree, reasons []string) {
	cannot := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	if spec.GID != nil {
		cannot("gid: Kubernetes' own volumes set no group; their files have the pod's fsGroup")
	}
	if spec.DirMode != directoryMode {
		cannot("dirMode %04o: directories of Kubernetes' own volumes have 0755", spec.DirMode)
	}
	if spec.Refresh != attributes.RefreshWatch {
		cannot("refresh %s: Kubernetes' own volumes always follow their object", spec.Refresh)
	}
	v = inTree{Shape: s, User: user(spec.UID)}
	if v.User == nil {
		v.User = user(podUser)
	}
	for _, source := range spec.Sources {
		p, usesMode, whys := projection(source)
		reasons = append(reasons, whys...)
		v.Sources = append(v.Sources, p)
		if !usesMode {
			continue
		}
		mode := int32(source.Mode)
		if v.Mode != nil && *v.Mode != mode {
			cannot("mode: a Secret's files have %04o and others %04o by default, but a projected volume has one mode for all: give mode",
				0o400, 0o444)
		}
		v.Mode = &mode
	}
	return v, reasons
}

func projection(source attributes.Source) (p corev1.VolumeProjection, usesMode bool, reasons []string) {
	for i, item := range source.Items {
		if item.GID != nil {
			reasons = append(reasons, fmt.Sprintf("gid of items[%d]: Kubernetes' own volumes set no group", i))
		}
		if source.Object.Kind == attributes.Pod && !item.IsResource() && !inTreeField(item.Key) {
			reasons = append(reasons, fmt.Sprintf("%s: Kubernetes' own volumes have only the pod's name, namespace, uid, labels and annotations", item.Key))
		}
	}
	name := corev1.LocalObjectReference{Name: source.Object.Name}
	optional := source.Optional
	switch source.Object.Kind {
	case attributes.Secret:
		p.Secret = &corev1.SecretProjection{LocalObjectReference: name, Items: keysToPaths(source.Items), Optional: &optional}
	case attributes.ConfigMap:
		p.ConfigMap = &corev1.ConfigMapProjection{LocalObjectReference: name, Items: keysToPaths(source.Items), Optional: &optional}
	case attributes.Pod:
		p.DownwardAPI = &corev1.DownwardAPIProjection{}
		for _, item := range source.Items {
			file := corev1.DownwardAPIVolumeFile{Path: item.Path, Mode: bits(item.Mode), User: user(item.UID)}
			if item.IsResource() {
				file.ResourceFieldRef = &corev1.ResourceFieldSelector{ContainerName: item.Container, Resource: item.Key}
				if divisor, err := resource.ParseQuantity(item.Divisor); err == nil {
					file.ResourceFieldRef.Divisor = divisor
				}
			} else {
				file.FieldRef = &corev1.ObjectFieldSelector{FieldPath: item.Key}
			}
			p.DownwardAPI.Items = append(p.DownwardAPI.Items, file)
		}
	default:
		reasons = append(reasons, "nodePublishSecretRef: name the Secret with secretName, and convert again")
	}
	return p, normalize(&p), reasons
}

func keysToPaths(items []attributes.Item) []corev1.KeyToPath {
	var all []corev1.KeyToPath
	for _, item := range items {
		all = append(all, corev1.KeyToPath{Key: item.Key, Path: item.Path, Mode: bits(item.Mode), User: user(item.UID)})
	}
	return all
}

// inTreeField reports whether a downwardAPI volume of Kubernetes may have the field of a pod (its validation of volumes).
func inTreeField(path string) bool {
	base, _, _ := strings.Cut(path, "[")
	switch base {
	case "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid":
		return true
	}
	return false
}

func user(uid *uint32) *int64 {
	if uid == nil {
		return nil
	}
	v := int64(*uid)
	return &v
}

func bits(mode *uint32) *int32 {
	if mode == nil {
		return nil
	}
	v := int32(*mode)
	return &v
}

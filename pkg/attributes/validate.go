// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxPath    = 4096 // bytes; AtomicWriter's limit, and the kernel's PATH_MAX
	maxElement = 255  // bytes; AtomicWriter's limit, and the kernel's NAME_MAX

	// maxProblems bounds the list, and so the message to kubelet, which cuts Events at 1 KiB anyway.
	maxProblems = 32
)

// The rules in the words of the messages. The policy "attributes" has the same texts.
const (
	pathLengthRule    = "must be at most 4096 bytes long"
	elementLengthRule = "must not contain an element of more than 255 bytes"

	oneOriginRule = "only one of secretName, configMapName, volume and nodePublishSecretRef may be given: keep one; " +
		"to project several objects, name a projected volume of the pod in volume"
	noOriginRule = "name the content: give secretName, configMapName or volume, " +
		"or set the volume's nodePublishSecretRef"
	optionalRule      = `must be exactly "true" or "false"`
	optionalPlaceRule = "belongs to secretName and configMapName: with volume, write optional in the volume that it names"
	refreshRule       = `must be exactly "watch" or "off"`
	layoutRule        = `must be exactly "links", "files" or "in-place"`

	templateLengthRule    = "must have 1 to 16384 bytes"
	templateTextRule      = "must be UTF-8 text without NUL"
	templateReferenceRule = `must close each "$(" with ")" before the next "$"; write "$$(" for the text "$("`
	templateFileRule      = "must name a file of the volume by its path, which is relative and in its shortest form; " +
		`write "$$(" for the text "$("`

	volumeItselfRule  = "must name another volume of the pod, not the volume itself"
	volumeMissingRule = "the pod has no volume of this name: " +
		"name one of its secret, configMap, downwardAPI or projected volumes"
	volumeTypeRule = "this volume of the pod is none of secret, configMap, downwardAPI and projected"
	projectedRule  = "it has a serviceAccountToken, clusterTrustBundle or podCertificate, " +
		"which only kubelet can make: " +
		"put that into a projected volume of its own; its files belong to the pod's runAsUser already"

	nameOnlyRule = "give the name alone: the object is always read from the pod's own namespace; "
)

// Validate applies the rules to a Spec that was read back from a record. It returns all problems of the Spec, or an
// empty list. It sets no defaults, so the zero Spec is invalid.
func Validate(s Spec) field.ErrorList {
	var errs field.ErrorList
	check := func(at *field.Path, value any, problem string) {
		if problem != "" {
			errs = append(errs, field.Invalid(at, value, problem))
		}
	}
	number := func(at *field.Path, n *uint32, problem func(uint64) string) {
		if n != nil {
			check(at, *n, problem(uint64(*n)))
		}
	}
	number(attribute("uid"), s.UID, idProblem)
	number(attribute("volume"), s.DefaultUser, idProblem)
	number(attribute("gid"), s.GID, idProblem)
	number(attribute("dirMode"), &s.DirMode, modeProblem)
	check(attribute("refresh"), short(string(s.Refresh)), refreshProblem(s.Refresh))
	check(attribute("layout"), short(string(s.Layout)), layoutProblem(s.Layout))
	if len(s.Sources) == 0 && s.Volume == "" {
		errs = append(errs, NoObject())
	}
	for _, source := range s.Sources {
		check(root(), short(source.Object.Name), sourceProblem(source, s.FromRequest()))
		number(attribute("mode"), &source.Mode, modeProblem)
		for _, item := range source.Items {
			check(root(), short(item.Path), recordedPathProblem(item.Path))
			number(attribute("uid/"+item.Path), item.UID, idProblem)
			number(attribute("mode/"+item.Path), item.Mode, modeProblem)
		}
	}
	for file, p := range s.Paths {
		check(root(), short(file), recordedPathProblem(file))
		number(attribute("uid/"+file), p.UID, idProblem)
		number(attribute("gid/"+file), p.GID, idProblem)
		number(attribute("mode/"+file), p.Mode, modeProblem)
	}
	for file, t := range s.Templates {
		check(root(), short(file), recordedPathProblem(file))
		value, problem := t.problem()
		check(attribute("template/"+file), value, problem)
	}
	for _, p := range slices.Concat(s.MountPoints, s.SubPaths) {
		check(root(), short(p), recordedPathProblem(p))
	}
	return present(errs)
}

func recordedPathProblem(path string) string {
	clean, problem := CleanPath(path)
	if problem == "" && clean != path {
		return "the path must be in its shortest form"
	}
	return problem
}

// sourceProblem refuses an object that this driver does not read, and a name that could change the URL of the request.
func sourceProblem(s Source, fromRequest bool) string {
	switch s.Object.Kind {
	case Secret, ConfigMap:
		return objectNameProblem(s.Object.Name)
	case Pod:
		if s.Object.Name != "" || s.Optional {
			return "the pod is the volume's own: it has neither name nor optional"
		}
		return ""
	}
	if fromRequest {
		return ""
	}
	return "must be a Secret, a ConfigMap or the Pod"
}

// objectNameProblem returns the problem of the name of a Secret or ConfigMap, or "" for a valid name.
func objectNameProblem(name string) string {
	if len(name) > validation.DNS1123SubdomainMaxLength { // first, so that no regular expression sees a long name
		return validation.MaxLenError(validation.DNS1123SubdomainMaxLength)
	}
	problems := validation.IsDNS1123Subdomain(name)
	if len(problems) > 0 && strings.Contains(name, "/") {
		return nameOnlyRule + problems[0]
	}
	return strings.Join(problems, "; ")
}

// volumeNameProblem returns the problem of the name of a volume, or "" for a valid name.
func volumeNameProblem(name string) string {
	if len(name) > validation.DNS1123LabelMaxLength {
		return validation.MaxLenError(validation.DNS1123LabelMaxLength)
	}
	return strings.Join(validation.IsDNS1123Label(name), "; ")
}

func refreshProblem(r Refresh) string {
	if r != RefreshWatch && r != RefreshOff {
		return refreshRule
	}
	return ""
}

func layoutProblem(l Layout) string {
	if l != LayoutLinks && l != LayoutFiles && l != LayoutInPlace {
		return layoutRule
	}
	return ""
}

// present sorts errs by attribute, keeps the order of the errors of an attribute, and limits the length of the list.
func present(errs field.ErrorList) field.ErrorList {
	slices.SortStableFunc(errs, func(a, b *field.Error) int { return strings.Compare(a.Field, b.Field) })
	if total := len(errs); total > maxProblems {
		errs = append(errs[:maxProblems:maxProblems], &field.Error{
			Type: field.ErrorTypeTooMany, Field: root().String(), BadValue: total,
			Detail: fmt.Sprintf("problems; only the first %d are listed", maxProblems),
		})
	}
	return errs
}

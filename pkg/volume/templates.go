// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/internal/text"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
)

// addTemplates adds the files of the templates to the files of the objects. A template can show the files of objects
// only, and its path belongs to the template: an object's file with this path is removed, even while the template can't
// be shown. addTemplates computes the size of all files before it builds one.
func (v *volume) addTemplates(files map[string]projector.File, content []projected, limits Limits) error {
	shown, err := v.shownTemplates(files, content)
	if err != nil {
		return err
	}
	var size int64
	for path, f := range files {
		if _, isTemplate := v.spec.Templates[path]; !isTemplate {
			size += int64(len(f.Data))
		}
	}
	for _, t := range shown {
		size += t.Size(func(file string) int { return len(files[file].Data) })
	}
	if err := v.checkBytes(size, limits); err != nil {
		return err
	}
	expanded := map[string]projector.File{}
	for path, t := range shown {
		expanded[path] = v.templateFile(path, t, files)
	}
	for path := range v.spec.Templates {
		delete(files, path)
	}
	maps.Copy(files, expanded)
	return nil
}

// shownTemplates returns the templates that can be shown. It leaves a template out while one of its files is missing
// and may still come. A file that can never come is an error.
func (v *volume) shownTemplates(
	files map[string]projector.File, content []projected,
) (map[string]attributes.Template, error) {
	shown := maps.Clone(v.spec.Templates)
	for _, path := range slices.Sorted(maps.Keys(v.spec.Templates)) {
		for _, file := range v.spec.Templates[path].Files() {
			if _, ok := files[file]; ok {
				continue
			}
			if !mayCome(file, content) {
				return nil, fmt.Errorf("%w: the attribute %q shows the file %q, which %s does not make; the files are %s; "+
					"correct the name, or write $$( for the text $(", ErrPrecondition,
					text.Shorten("template/"+path, 64), text.Shorten(file, 64), v.origin(), listOf(files))
			}
			delete(shown, path)
		}
	}
	return shown, nil
}

// templateFile makes the file of a template. Unless the attributes set its mode, the mode has only the bits that all
// files have that the template shows.
func (v *volume) templateFile(path string, t attributes.Template, files map[string]projector.File) projector.File {
	mode := v.spec.FileMode()
	for _, file := range t.Files() {
		mode &= files[file].Mode
	}
	data := t.Expand(func(file string) []byte { return files[file].Data })
	return v.file(path, data, attributes.Source{Mode: mode}, attributes.Item{})
}

// listOf returns the names of the first files, for a message.
func listOf(files map[string]projector.File) string {
	const most = 10
	var names []string
	for _, path := range slices.Sorted(maps.Keys(files)) {
		names = append(names, strconv.Quote(text.Shorten(path, 64)))
	}
	switch more := len(names) - most; {
	case len(names) == 0:
		return "none"
	case more > 0:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

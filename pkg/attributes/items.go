// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxItems     = 1024
	maxItemsText = 64 << 10 // bytes, checked before anything is decoded
	// maxOpenings bounds how often a list or mapping may begin in the text, and so its depth: a list and, per item, at most a
	// dash and a brace. YAML's own limit, a depth of 10000, costs 20 ms and 16 MiB of stack.
	maxOpenings = 2*maxItems + 64

	itemsRule = "must be a YAML or JSON list of {key, path, mode, uid, gid}"
)

// parseItems reads the attribute items, a list in YAML or JSON, strictly. As in the Kubernetes API an empty list, like null, is as
// good as none. Items that could not be read stay in their place, empty, so that indexes in later messages are right.
func parseItems(path *field.Path, text string) ([]Item, field.ErrorList) {
	if len(text) > maxItemsText {
		return nil, field.ErrorList{field.TooLong(path, "", maxItemsText)}
	}
	list, err := decodeList(text)
	if err != nil {
		return nil, field.ErrorList{field.Invalid(path, short(text), itemsRule+": "+oneLine(err.Error()))}
	}
	if len(list) > maxItems {
		return nil, field.ErrorList{field.TooMany(path, len(list), maxItems)}
	}
	var (
		items []Item
		errs  field.ErrorList
	)
	for i, decoded := range list {
		item, itemErrs := parseItem(path.Index(i), decoded)
		items = append(items, item)
		errs = append(errs, itemErrs...)
	}
	return items, errs
}

// decodeList decodes exactly one YAML document that holds a list. JSON is YAML. It uses the decoder beneath sigs.k8s.io/yaml, the
// one kubectl reads manifests with, so that 0400 means here what it means there; sigs.k8s.io/yaml itself stops after the first
// document and would not notice what follows it.
func decodeList(text string) ([]any, error) {
	if hasAnchor(text) {
		return nil, errors.New(`YAML anchors and aliases ("&name", "*name") are not accepted, write the value out`)
	}
	if openings(text) > maxOpenings {
		return nil, fmt.Errorf("more than %d items, or nested too deeply", maxItems)
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.SetStrict(true) // a field given twice is an error
	var document any
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, errors.New("there is nothing in it; for every key, remove the attribute")
	} else if err != nil {
		return nil, err
	}
	// Never after an error: the decoder would panic.
	var more any
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the list")
	}
	switch list := document.(type) {
	case nil:
		return nil, nil
	case []any:
		return list, nil
	case map[any]any:
		return nil, errors.New("this is a single mapping; put it in a list, as in [{key: a, path: a}]")
	}
	return nil, errors.New("this is no list")
}

// hasAnchor reports whether text might define a YAML anchor. Without anchors there are no aliases, and without aliases a document
// cannot become larger than its text. An '&' begins an anchor only before a letter, digit, '_' or '-', and not within a word, so
// "a&b" and "R & D" pass. Within quotes this refuses a little too much ("R &D"): telling quotes apart takes a full YAML scanner.
func hasAnchor(text string) bool {
	for i := range len(text) - 1 {
		next := text[i+1]
		if text[i] == '&' && (isAlnum(next) || next == '_' || next == '-') && (i == 0 || !isAlnum(text[i-1])) {
			return true
		}
	}
	return false
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// openings counts what may begin a list or mapping: brackets, braces, and dash or question mark before white space. Where block
// mappings nest by indentation alone, the text grows with the square of the depth, which its size already bounds.
func openings(text string) int {
	count := 0
	for i := range len(text) {
		switch text[i] {
		case '[', '{':
			count++
		case '-', '?':
			// YAML 1.1 also breaks lines at NEL, LS and PS, which begin with these two bytes.
			if i+1 == len(text) || bytes.IndexByte([]byte(" \t\r\n\xc2\xe2"), text[i+1]) >= 0 {
				count++
			}
		}
	}
	return count
}

// itemFields are the names that an item may have.
func itemFields() []string { return []string{"key", "path", "mode", "uid", "gid"} }

// parseItem reads one decoded item. Null fields count as absent. Whether key and path are there and good is Validate's to say.
func parseItem(path *field.Path, decoded any) (Item, field.ErrorList) {
	fields, ok := decoded.(map[any]any)
	if !ok {
		return Item{}, field.ErrorList{field.Invalid(path, describe(decoded), "must be a mapping, such as {key: a, path: a}")}
	}
	var (
		item Item
		errs field.ErrorList
		text = func(name string) string {
			value, isText := fields[name].(string)
			if !isText && fields[name] != nil {
				errs = append(errs, field.Invalid(path.Child(name), describe(fields[name]),
					"must be a string: put it in quotes (YAML takes 1 for a number, y or no for a boolean)"))
			}
			return value
		}
		number = func(name string, read func(any) (*uint32, string)) *uint32 {
			value, problem := read(fields[name])
			if problem != "" {
				errs = append(errs, field.Invalid(path.Child(name), describe(fields[name]), problem))
			}
			return value
		}
	)
	item.Key = text("key")
	item.Path = text("path")
	item.Mode = number("mode", modeFromItem)
	item.UID = number("uid", idFromItem)
	item.GID = number("gid", idFromItem)

	var unknown []string
	for name := range fields {
		if text, isText := name.(string); !isText || !slices.Contains(itemFields(), text) {
			unknown = append(unknown, fmt.Sprint(name))
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		errs = append(errs, field.Forbidden(path.Child(printable(name)), unknownName("field", name, itemFields())))
	}
	return item, errs
}

// describe names a decoded value for a message: scalars by their text, the rest by its kind.
func describe(decoded any) string {
	switch v := decoded.(type) {
	case nil:
		return "null"
	case []any:
		return "a list"
	case map[any]any:
		return "a mapping"
	default:
		return short(fmt.Sprint(v))
	}
}

// SPDX-License-Identifier: Apache-2.0

package attributes

import "k8s.io/apimachinery/pkg/util/validation/field"

// parseItems reads the attribute items, a list in YAML or JSON, strictly. Items that could not be read stay in their place, empty, so
// that indexes in later messages are right.
func parseItems(path *field.Path, text string) ([]Item, field.ErrorList) {
	decoded, errs := list{
		rule: "must be a YAML or JSON list of {key, path, mode, uid, gid}", example: "[{key: a, path: a}]",
		empty: "for every key, remove the attribute",
	}.decode(path, text)
	if len(errs) > 0 {
		return nil, errs
	}
	return readItems(path, decoded, parseItem)
}

// readItems reads each entry of a list of items.
func readItems(path *field.Path, decoded []any, read func(*field.Path, any) (Item, field.ErrorList)) ([]Item, field.ErrorList) {
	return readEach(path, decoded, maxItems, read)
}

// parseItem reads one decoded item of a Secret or ConfigMap. Whether key and path are there and good is Validate's to say.
func parseItem(path *field.Path, decoded any) (Item, field.ErrorList) {
	m, errs := readMapping(path, decoded, "{key: a, path: a}")
	if m == nil {
		return Item{}, errs
	}
	item := Item{Key: m.text("key"), Path: m.text("path")}
	item.readOwner(m)
	m.only("key", "path", "mode", "uid", "gid")
	return item, m.errs
}

// readOwner reads what an item of any kind may say of its file.
func (i *Item) readOwner(m *mapping) {
	i.Mode = m.number("mode", modeFromItem)
	i.UID = m.number("uid", idFromItem)
	i.GID = m.number("gid", idFromItem)
}

// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
)

const jsonSpace = " \t\r\n"

// readJSON reads a text of JSON values. Each value is a document.
func (f *File) readJSON(from, to int) (documents []*Document, problem *SyntaxError) {
	for strings.TrimLeft(f.Text[from:to], jsonSpace) != "" {
		d := f.document(from, to)
		d.JSON = true
		r := jsonReader{doc: d, decoder: json.NewDecoder(strings.NewReader(d.Text))}
		r.decoder.UseNumber()
		root, err := r.value(0)
		if err != nil {
			message := err.Error()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				message = "unexpected end of the text"
			}
			return nil, d.syntaxError(int(r.decoder.InputOffset()), "this is not JSON: "+message)
		}
		d.Root, d.Text = root, d.Text[:r.decoder.InputOffset()]
		from += len(d.Text)
		documents = append(documents, d)
	}
	return documents, nil
}

type jsonReader struct {
	doc     *Document
	decoder *json.Decoder
}

func (r *jsonReader) value(depth int) (*Node, error) {
	if depth > maxDepth {
		return nil, errTooDeep
	}
	rest := r.doc.Text[r.decoder.InputOffset():]
	n := &Node{Document: r.doc, Kind: Scalar, Start: len(r.doc.Text) - len(strings.TrimLeft(rest, jsonSpace+",:"))}
	token, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Delim:
		if n.Kind = List; token == '{' {
			n.Kind = Mapping
		}
		return n, r.content(n, depth)
	case string:
		n.Text, n.Value = token, token
	default: // YAML has the same syntax for numbers, booleans and null.
		n.Text = r.doc.Text[n.Start:r.decoder.InputOffset()]
		n.Value = yamlScalar(n.Text, false)
	}
	return n, nil
}

// content reads the content of a list or mapping, up to its closing bracket.
func (r *jsonReader) content(n *Node, depth int) error {
	n.Flow = true
	for r.decoder.More() {
		child, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		if n.Kind == List {
			n.Items = append(n.Items, child)
			continue
		}
		value, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.set(Entry{Name: child.Text, Key: child, Value: value})
	}
	_, err := r.decoder.Token()
	return err
}

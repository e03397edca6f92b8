// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"unicode/utf8"
)

// FuzzRoundTrip checks that a saved record is loaded unchanged, and that nothing but the record is written.
func FuzzRoundTrip(f *testing.F) {
	f.Add("csi-1", "/t", "ns", "pod", "uid", "Secret", "name", "key", "a/<b>&", "watch", "", uint32(1), uint32(2),
		uint64(3),
		uint64(1<<63), true)
	f.Add("../x\x00", "\u2028", "", "", "u", "", "", "", "", "", "files", uint32(1<<32-1), uint32(0), uint64(1<<64-1),
		uint64(0),
		false)
	dir := filepath.Join(f.TempDir(), "volumes")
	f.Fuzz(func(t *testing.T, id, target, namespace, name, uid, kind, object, key, path, refresh, layout string,
		a, b uint32, device, fsid uint64, more bool) {
		v := Volume{VolumeID: id, TargetPath: target, Pod: Pod{namespace, name, uid}, Device: device,
			FSID: fsid,
			Spec: Spec{Volume: kind, Sources: []Source{{Kind: kind, Name: object, Mode: a, Optional: more}}, DirMode: b,
				Refresh: refresh, Layout: layout}}
		if more {
			v.MountGroup, v.User, v.Allocatable = &a, &b, map[string]string{key: path}
			v.Spec.UID, v.Spec.GID, v.Spec.Mode, v.Spec.DefaultUser = &b, &a, &a, &b
			v.Spec.Sources[0].Items = []Item{{Key: key, Container: path, Divisor: key, Path: path, Mode: &a, UID: &b},
				{Key: path, Path: key}}
			v.Spec.Paths = map[string]Permissions{path: {UID: &a, Mode: &b}, key: {GID: &a}}
			v.Spec.Templates = map[string]string{path: layout, key: refresh}
			v.Spec.MountPoints, v.Spec.SubPaths = []string{path, key}, []string{key}
		}
		v.Version = v.version()
		for _, s := range []string{id, target, namespace, name, uid, kind, object, key, path, refresh, layout} {
			if !utf8.ValidString(s) {
				return // protobuf refuses such a request
			}
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Save(v); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(s.path(id)); err != nil || st.Size() > int64(MaxLength(v)) {
			t.Fatalf("the file of %+v is longer than %d bytes, or %v", v, MaxLength(v), err)
		}
		volumes, bad, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		if v.check() != nil {
			if len(volumes) != 0 || len(bad) != 1 || !errors.Is(bad[0], ErrCorrupt) {
				t.Fatalf("%+v: loaded %+v, bad %v", v, volumes, bad)
			}
			return
		}
		if len(bad) != 0 || len(volumes) != 1 || !reflect.DeepEqual(volumes[0], v) {
			t.Fatalf("saved %+v, loaded %+v, bad %v", v, volumes, bad)
		}
		if err := s.Remove(id); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 1 || len(entries) == 1 &&
			entries[0].Name() != badDir {
			t.Fatalf("left: %v, %v", entries, err)
		}
	})
}

// FuzzDecode checks that decode never panics, that an error and a record exclude each other, and that an accepted
// record can be written and read without a change.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		golden, goldenMinimal, "", "{}", "null", "[]", `{"version":4}`, `{"version":5}`, `{"version":3}`, golden + golden,
		golden + "]",
		golden[:100],
		`{"VERSION":4,"volumeid":"a","targetpath":"b","pod":{"uid":"c"}}`, `{"version":4e0}`, `{"version":3,"version":4}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decode(b)
		if zero := reflect.DeepEqual(v, Volume{}); zero != (err != nil) {
			t.Fatalf("%q: %+v and %v", b, v, err)
		}
		if err != nil {
			if errors.Is(err, ErrCorrupt) == errors.Is(err, ErrVersion) {
				t.Fatalf("%q: %v is neither or both of the package's errors", b, err)
			}
			return
		}
		encoded, err := encode(v)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		// The form leaves out empty fields.
		for i := range v.Spec.Sources {
			v.Spec.Sources[i].Items = append([]Item(nil), v.Spec.Sources[i].Items...)
		}
		v.Spec.MountPoints, v.Spec.SubPaths = append([]string(nil), v.Spec.MountPoints...),
			append([]string(nil), v.Spec.SubPaths...)
		if len(v.Spec.Paths) == 0 {
			v.Spec.Paths = nil
		}
		if len(v.Spec.Templates) == 0 {
			v.Spec.Templates = nil
		}
		if len(v.Allocatable) == 0 {
			v.Allocatable = nil
		}
		again, err := decode(encoded)
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Fatalf("%q: %+v, then %+v, %v", b, v, again, err)
		}
	})
}

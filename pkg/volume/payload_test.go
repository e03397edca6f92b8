// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

func testVolume(spec attributes.Spec, group *uint32) *volume {
	return newVolume(Request{
		ID: "csi-v", TargetPath: "/t", Pod: Pod{Namespace: namespace, Name: "pod", UID: "uid"}, Spec: spec, MountGroup: group,
	})
}

// describe returns the Spec of a volume that another volume of the pod describes, with pairs of attributes.
func describe(t testing.TB, described corev1.VolumeSource, attrs ...string) attributes.Spec {
	t.Helper()
	m := map[string]string{"volume": "described"}
	for i := 0; i < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	spec, errs := parse(t, m, false).Describe(&corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "described", VolumeSource: described}},
	}, "v")
	must(t, errs.ToAggregate())
	return spec
}

// showing returns the projections of a volume with one content each.
func (v *volume) showing(all ...content) (shown []projected) {
	for i, c := range all {
		shown = append(shown, projected{v.projections[i], source.Content{Data: c.bytes()}})
	}
	return shown
}

func TestPayload(t *testing.T) {
	file := func(path, data string, mode, uid, gid uint32) projector.File {
		return projector.File{Path: path, Data: []byte(data), Mode: mode, UID: uid, GID: gid}
	}
	keys := content{"a": "1", "b": "2"}
	for _, test := range []struct {
		name    string
		attrs   map[string]string
		group   *uint32
		content content
		want    projector.Payload
	}{
		{"every key of a Secret is a file of root's with mode 0400", map[string]string{"secretName": "s"}, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0),
				file("b", "2", 0o400, 0, 0)}}},
		{"of a ConfigMap the mode is 0444", map[string]string{"configMapName": "c"}, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o444, 0, 0),
				file("b", "2", 0o444, 0, 0)}}},
		{"the content of a request is a Secret's", nil, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0),
				file("b", "2", 0o400, 0, 0)}}},
		{"no keys, no files", map[string]string{"secretName": "s", "uid": "7", "dirMode": "0700"}, ptr.To[uint32](9),
			content{},
			projector.Payload{DirMode: 0o700, UID: 7, GID: 9}},
		{"uid, gid and modes apply to all",
			map[string]string{"secretName": "s", "uid": "1000", "gid": "2000", "mode": "0440", "dirMode": "0750"}, nil, keys,
			projector.Payload{DirMode: 0o750, UID: 1000, GID: 2000, Files: []projector.File{
				file("a", "1", 0o440, 1000, 2000), file("b", "2", 0o440, 1000, 2000)}}},
		{"the pod's fsGroup owns what names no group", map[string]string{"secretName": "s", "uid": "1000"},
			ptr.To[uint32](3000), content{"a": "1"},
			projector.Payload{DirMode: 0o755, UID: 1000, GID: 3000, Files: []projector.File{file("a", "1", 0o400, 1000, 3000)}}},
		{"a gid is stronger than the pod's fsGroup, even 0", map[string]string{"secretName": "s", "gid": "0"},
			ptr.To[uint32](3000), content{"a": "1"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0)}}},
		{"an fsGroup of 0 is a group", map[string]string{"secretName": "s"}, ptr.To[uint32](0), content{"a": "1"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0)}}},
		{"a PATH overrides owner, group and mode one by one", map[string]string{
			"secretName": "s", "uid": "1000", "gid": "2000", "mode": "0600", "uid/u": "0", "gid/g": "0", "mode/m": "0000",
			"uid/all": "1", "gid/all": "2", "mode/all": "0777",
		}, ptr.To[uint32](3000), content{"u": "", "g": "", "m": "", "all": "", "none": ""},
			projector.Payload{DirMode: 0o755, UID: 1000, GID: 2000, Files: []projector.File{
				file("all", "", 0o777, 1, 2), file("g", "", 0o600, 1000, 0), file("m", "", 0, 1000, 2000),
				file("none", "", 0o600, 1000, 2000), file("u", "", 0o600, 0, 2000)}}},
		{"a PATH's group is stronger than the pod's", map[string]string{"secretName": "s", "gid/a": "5"},
			ptr.To[uint32](3000), keys,
			projector.Payload{DirMode: 0o755, GID: 3000,
				Files: []projector.File{file("a", "1", 0o400, 0, 5), file("b", "2", 0o400, 0, 3000)}}},
		{"layout files", map[string]string{"secretName": "s", "layout": "files"}, nil, content{},
			projector.Payload{DirMode: 0o755, Layout: projector.Files}},
		{"layout in-place", map[string]string{"secretName": "s", "layout": "in-place"}, nil, content{},
			projector.Payload{DirMode: 0o755, Layout: projector.InPlace}},
		{"a value may be empty, and no text", map[string]string{"secretName": "s"}, nil, content{"a": "", "b": "\x00\xff\n"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "", 0o400, 0, 0),
				file("b", "\x00\xff\n", 0o400, 0, 0)}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testVolume(parse(t, test.attrs, test.attrs == nil), test.group)
			got, err := v.payload(v.showing(test.content), ample)
			must(t, err)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// Each step removes the strongest setting of the owner and mode of the file.
func TestPrecedenceOfOwnerAndMode(t *testing.T) {
	described := secretVolume("s", "k", "d/f")
	secret, item := described.Secret, &described.Secret.Items[0]
	secret.DefaultUser, secret.DefaultMode = ptr.To[int64](4), ptr.To[int32](0o400)
	item.User, item.Mode = ptr.To[int64](2), ptr.To[int32](0o600)
	attrs := map[string]string{
		"volume": "described", "uid/d/f": "1", "gid/d/f": "10", "mode/d/f": "0700", "uid": "3", "gid": "30", "mode": "0500",
	}
	user, group := ptr.To[uint32](5), ptr.To[uint32](50)
	remove := func(keys ...string) {
		for _, key := range keys {
			delete(attrs, key)
		}
	}
	for _, step := range []struct {
		strongest string
		remove    func()
		file      permissions
		// uid and gid own directories and links, to which neither PATH nor item applies.
		uid, gid uint32
	}{
		{"PATH", func() {}, permissions{0o700, 1, 10}, 3, 30},
		{"the item's user and mode", func() { remove("uid/d/f", "gid/d/f", "mode/d/f") }, permissions{0o600, 2, 30}, 3, 30},
		{"uid, gid and mode", func() { item.User, item.Mode = nil, nil }, permissions{0o500, 3, 30}, 3, 30},
		{"defaultUser, fsGroup and defaultMode", func() { remove("uid", "gid", "mode") }, permissions{0o400, 4, 50}, 4, 50},
		{"the pod's runAsUser", func() { secret.DefaultUser, secret.DefaultMode = nil, nil }, permissions{0o644, 5, 50}, 5,
			50},
		{"nothing", func() { user, group = nil, nil }, permissions{0o644, 0, 0}, 0, 0},
	} {
		step.remove()
		var pairs []string
		for key, value := range attrs {
			pairs = append(pairs, key, value)
		}
		v := testVolume(describe(t, described, pairs...), group)
		v.user = user
		p, err := v.payload(v.showing(content{"k": "1"}), ample)
		must(t, err)
		f := p.Files[0]
		if got := (permissions{f.Mode, f.UID, f.GID}); got != step.file {
			t.Errorf("%s is strongest: got %04o %d:%d, want %04o %d:%d",
				step.strongest, got.mode, got.uid, got.gid, step.file.mode, step.file.uid, step.file.gid)
		}
		if p.UID != step.uid || p.GID != step.gid {
			t.Errorf("%s is strongest: directories belong to %d:%d, want %d:%d", step.strongest, p.UID, p.GID, step.uid,
				step.gid)
		}
	}
}

func TestPayloadOfADescribedVolume(t *testing.T) {
	file := func(path, data string, mode uint32) projector.File {
		return projector.File{Path: path, Data: []byte(data), Mode: mode}
	}
	optional := secretVolume("s", "gone", "gone", "b", "b")
	optional.Secret.Optional = ptr.To(true)
	for _, test := range []struct {
		name      string
		described corev1.VolumeSource
		attrs     []string
		content   []content
		want      []projector.File
	}{
		{"no items: each key", secretVolume("s"), nil, []content{{"a": "1", "b": "2"}},
			[]projector.File{file("a", "1", 0o644), file("b", "2", 0o644)}},
		{"items pick keys and name paths", secretVolume("s", "a", "x/y/a", "a", "again"), nil,
			[]content{{"a": "1", "b": "2"}},
			[]projector.File{file("again", "1", 0o644), file("x/y/a", "1", 0o644)}},
		{"optional keys that are missing are left out", optional, nil, []content{{"b": "2"}},
			[]projector.File{file("b", "2", 0o644)}},
		{"of two items of one path the later wins", secretVolume("s", "a", "p", "b", "p"), nil,
			[]content{{"a": "1", "b": "2"}},
			[]projector.File{file("p", "2", 0o644)}},
		{"of two sources of one path the later wins",
			projectedVolume(secretProjection("a"), secretProjection("b", "k", "dir/f", "k", "x")), nil,
			[]content{{"x": "1", "y": "1"}, {"k": "2"}},
			[]projector.File{file("dir/f", "2", 0o644), file("x", "2", 0o644), file("y", "1", 0o644)}},
		{"a PATH holds for the source that wins", projectedVolume(secretProjection("a"), secretProjection("b")),
			[]string{"mode/x", "0600"},
			[]content{{"x": "1"}, {"x": "2"}}, []projector.File{file("x", "2", 0o600)}},
		{"paths as kubelet takes them", secretVolume("s", "a", "certs.d/host:5000/ca.crt", "b", "back\\slash", "c",
			"new\nline", "d", "a b/./c//d"),
			[]string{"mode/certs.d/host:5000/ca.crt", "0600", "mode/new\nline", "0500"},
			[]content{{"a": "1", "b": "2", "c": "3", "d": "4"}},
			[]projector.File{file("a b/c/d", "4", 0o644), file("back\\slash", "2", 0o644),
				file("certs.d/host:5000/ca.crt", "1", 0o600), file("new\nline", "3", 0o500)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testVolume(describe(t, test.described, test.attrs...), nil)
			got, err := v.payload(v.showing(test.content...), ample)
			must(t, err)
			if !reflect.DeepEqual(got.Files, test.want) {
				t.Errorf("got  %+v\nwant %+v", got.Files, test.want)
			}
		})
	}
}

func TestPayloadRefuses(t *testing.T) {
	secret := parse(t, map[string]string{"secretName": "s"}, false)
	items := func(items ...string) attributes.Spec { return describe(t, secretVolume("s", items...)) }
	many := func(n int) content {
		c := content{}
		for i := range n {
			c[fmt.Sprint("k", i)] = ""
		}
		return c
	}
	var deep []string
	for i := range 15 {
		deep = append(deep, "a", strings.Repeat(fmt.Sprintf("%x/", i), 2047)+"a")
	}
	for _, test := range []struct {
		name    string
		spec    attributes.Spec
		content content
		limits  Limits
		says    []string
	}{
		{"a key that items name and that is not there", items("a", "a", "gone", "gone"), content{"a": "1"}, ample,
			[]string{`Secret "ns/s"`, `"gone"`, "optional"}},
		{"one byte more than the limit", secret, content{"a": "12345", "b": "123456"}, Limits{Bytes: 10, Files: 9},
			[]string{`Secret "ns/s"`, "11 bytes", "10", "--max-volume-bytes"}},
		{"one file more than the limit", secret, many(4), Limits{Bytes: 10, Files: 3},
			[]string{`Secret "ns/s"`, "4 files", "3", "--max-volume-files", "items"}},
		{"one directory more than the limit", items("a", "d/e/a", "a", "d/f/a"), content{"a": ""},
			Limits{Bytes: 10, Files: 4},
			[]string{`Secret "ns/s"`, "2 files and 3 directories", "4", "--max-volume-files", "fewer directories"}},
		{"15 paths of 2047 directories each (H-089)", items(deep...), content{"a": ""}, ample,
			[]string{"15 files and 30705 directories", "2048", "--max-volume-files"}},
		{"a key that is taken more often than the limit lets", items("a", "a", "a", "b"), content{"a": "123456"},
			Limits{Bytes: 10, Files: 9},
			[]string{"12 bytes", "--max-volume-bytes"}},
		{"a request's content names whose it is", parse(t, nil, true), content{"a": "12"}, Limits{Bytes: 1, Files: 1},
			[]string{"nodePublishSecretRef", `"ns/pod"`, "--max-volume-bytes"}},
		{"a key that leads out", secret, content{"../../etc/passwd": "x"}, ample,
			[]string{`"../../etc/passwd"`, `Secret "ns/s"`, "can't be a file name"}},
		{"a key with a directory", secret, content{"a/b": "x"}, ample,
			[]string{`"a/b"`, "can't be a file name", "single element"}},
		{"a key that is absolute", secret, content{"/etc/passwd": "x"}, ample, []string{`"/etc/passwd"`}},
		{"a key of the layout", secret, content{"..data": "x"}, ample, []string{`"..data"`}},
		{"a key that is ..", secret, content{"..": "x"}, ample, []string{`".."`}},
		{"a key that is the directory itself", secret, content{".": "x"}, ample, []string{`"."`}},
		{"a key that is nothing", secret, content{"": "x"}, ample, []string{`""`}},
		{"a key with NUL in it", secret, content{"a\x00b": "x"}, ample, []string{`"a\x00b"`}},
		{"a key that leads out further in", secret, content{"a/../../b": "x"}, ample, []string{`"a/../../b"`}},
		{"a key that is too long for a file name", secret, content{strings.Repeat("k", 256): "x"}, ample,
			[]string{"can't be a file name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testVolume(test.spec, nil)
			_, err := v.payload(v.showing(test.content), test.limits)
			isErr(t, err, ErrPrecondition, test.says...)
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("the error is not one line: %q", err)
			}
			if worthRetry(err) {
				t.Error("only a change of the object helps, yet it is taken for worth a retry")
			}
		})
	}

	t.Run("mount points and directories count as much as those of files", func(t *testing.T) {
		spec := items("a", "a")
		spec.MountPoints, spec.SubPaths = []string{"m/n"}, []string{"d"}
		v := testVolume(spec, nil)
		_, err := v.payload(v.showing(content{"a": ""}), Limits{Bytes: 1, Files: 3})
		isErr(t, err, ErrPrecondition, "1 files and 3 directories", "--max-volume-files")
		_, err = v.payload(v.showing(content{"a": ""}), Limits{Bytes: 1, Files: 4})
		must(t, err)
	})
	t.Run("exactly the limits are no error", func(t *testing.T) {
		v := testVolume(secret, nil)
		if _, err := v.payload(v.showing(content{"a": "12345", "b": "12345"}), Limits{Bytes: 10, Files: 2}); err != nil {
			t.Error(err)
		}
	})
	t.Run("nor are they with directories", func(t *testing.T) {
		v := testVolume(items("a", "d/e/a", "a", "d/f/a"), nil)
		if _, err := v.payload(v.showing(content{"a": "1"}), Limits{Bytes: 2, Files: 5}); err != nil {
			t.Error(err)
		}
	})
	t.Run("what items leave out does not count", func(t *testing.T) {
		v := testVolume(items("a", "a"), nil)
		if _, err := v.payload(v.showing(content{"a": "1", "b": "12345", "../c": "x"}),
			Limits{Bytes: 1, Files: 1}); err != nil {
			t.Error(err)
		}
	})
}

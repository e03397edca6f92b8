// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

var ample = Limits{Bytes: 4 << 20, Files: 2048, Volumes: 1000, NodeBytes: 1 << 30, Objects: 1000}

func testVolume(spec attributes.Spec, group *uint32) *volume {
	return newVolume(Request{ID: "csi-v", Target: "/t", Pod: Pod{Namespace: namespace, Name: "pod", UID: "uid"}, Spec: spec, MountGroup: group})
}

func TestPayload(t *testing.T) {
	group := func(gid uint32) *uint32 { return &gid }
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
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0), file("b", "2", 0o400, 0, 0)}}},
		{"of a ConfigMap the mode is 0444", map[string]string{"configMapName": "c"}, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o444, 0, 0), file("b", "2", 0o444, 0, 0)}}},
		{"the content of a request is a Secret's", nil, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0), file("b", "2", 0o400, 0, 0)}}},
		{"no keys, no files", map[string]string{"secretName": "s", "uid": "7", "dirMode": "0700"}, group(9), content{},
			projector.Payload{DirMode: 0o700, UID: 7, GID: 9}},
		{"uid, gid and modes apply to all", map[string]string{"secretName": "s", "uid": "1000", "gid": "2000", "mode": "0440", "dirMode": "0750"}, nil, keys,
			projector.Payload{DirMode: 0o750, UID: 1000, GID: 2000, Files: []projector.File{file("a", "1", 0o440, 1000, 2000), file("b", "2", 0o440, 1000, 2000)}}},
		{"the pod's fsGroup owns what names no group", map[string]string{"secretName": "s", "uid": "1000"}, group(3000), content{"a": "1"},
			projector.Payload{DirMode: 0o755, UID: 1000, GID: 3000, Files: []projector.File{file("a", "1", 0o400, 1000, 3000)}}},
		{"a gid is stronger than the pod's fsGroup, even 0", map[string]string{"secretName": "s", "gid": "0"}, group(3000), content{"a": "1"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0)}}},
		{"an fsGroup of 0 is a group", map[string]string{"secretName": "s"}, group(0), content{"a": "1"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0)}}},
		{"items pick keys, name paths, and override mode, uid and gid one by one",
			map[string]string{"secretName": "s", "uid": "1000", "gid": "2000", "mode": "0600", "items": `[
				{key: a, path: x/y/a}, {key: a, path: again, mode: "0000"}, {key: a, path: u, uid: 0}, {key: a, path: g, gid: 0}]`}, group(3000), keys,
			projector.Payload{DirMode: 0o755, UID: 1000, GID: 2000, Files: []projector.File{
				file("again", "1", 0, 1000, 2000), file("g", "1", 0o600, 1000, 0), file("u", "1", 0o600, 0, 2000), file("x/y/a", "1", 0o600, 1000, 2000)}}},
		{"an item's group is stronger than the pod's", map[string]string{"secretName": "s", "items": `[{key: a, path: a, gid: 5}, {key: b, path: b}]`}, group(3000), keys,
			projector.Payload{DirMode: 0o755, GID: 3000, Files: []projector.File{file("a", "1", 0o400, 0, 5), file("b", "2", 0o400, 0, 3000)}}},
		{"optional keys that are missing are left out", map[string]string{"secretName": "s", "optional": "true", "items": `[{key: gone, path: gone}, {key: b, path: b}]`}, nil, keys,
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("b", "2", 0o400, 0, 0)}}},
		{"an empty list of items is as good as none", map[string]string{"secretName": "s", "items": "[]"}, nil, content{"a": "1"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "1", 0o400, 0, 0)}}},
		{"a value may be empty, and no text", map[string]string{"secretName": "s"}, nil, content{"a": "", "b": "\x00\xff\n"},
			projector.Payload{DirMode: 0o755, Files: []projector.File{file("a", "", 0o400, 0, 0), file("b", "\x00\xff\n", 0o400, 0, 0)}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testVolume(parse(t, test.attrs, test.attrs == nil), test.group)
			got, err := v.payload([]source.Content{{Data: test.content.bytes()}}, ample)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got.Files, func(a, b projector.File) int { return strings.Compare(a.Path, b.Path) })
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// The doc of attributes.Spec promises it for a Spec that does not come from Parse, too.
func TestPayloadOfItemsThatAreEmptyAndNotNilHasEveryKey(t *testing.T) {
	spec := parse(t, map[string]string{"secretName": "s"}, false)
	spec.Sources[0].Items = []attributes.Item{}
	p, err := testVolume(spec, nil).payload([]source.Content{{Data: content{"a": "1"}.bytes()}}, ample)
	if err != nil || len(p.Files) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestPayloadRefuses(t *testing.T) {
	secret := map[string]string{"secretName": "s"}
	items := func(list, optional string) map[string]string {
		return map[string]string{"secretName": "s", "items": list, "optional": optional}
	}
	many := func(n int) content {
		c := content{}
		for i := range n {
			c[fmt.Sprint("k", i)] = ""
		}
		return c
	}
	deep := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("{key: a, path: %s}", strings.Repeat(fmt.Sprintf("%x/", i), 2047)+"a"))
		}
		return "[" + strings.Join(list, ", ") + "]"
	}
	for _, test := range []struct {
		name    string
		attrs   map[string]string
		content content
		limits  Limits
		says    []string
	}{
		{"a key that items name and that is not there", items(`[{key: a, path: a}, {key: gone, path: gone}]`, "false"), content{"a": "1"}, ample,
			[]string{`Secret "ns/s"`, `"gone"`, "items[1]", "optional"}},
		{"one byte more than the limit", secret, content{"a": "12345", "b": "123456"}, Limits{Bytes: 10, Files: 9},
			[]string{`Secret "ns/s"`, "11 bytes", "10", "--max-volume-bytes"}},
		{"one file more than the limit", secret, many(4), Limits{Bytes: 10, Files: 3},
			[]string{`Secret "ns/s"`, "4 files", "3", "--max-volume-files", "items"}},
		{"one directory more than the limit", items(`[{key: a, path: d/e/a}, {key: a, path: d/f/a}]`, "false"), content{"a": ""}, Limits{Bytes: 10, Files: 4},
			[]string{`Secret "ns/s"`, "2 files and 3 directories", "4", "--max-volume-files", "fewer directories"}},
		{"15 paths of 2047 directories each (H-089)", items(deep(15), "false"), content{"a": ""}, ample,
			[]string{"15 files and 30705 directories", "2048", "--max-volume-files"}},
		{"a key that is taken more often than the limit lets", items(`[{key: a, path: a}, {key: a, path: b}]`, "false"), content{"a": "123456"}, Limits{Bytes: 10, Files: 9},
			[]string{"12 bytes", "--max-volume-bytes"}},
		{"a request's content names whose it is", nil, content{"a": "12"}, Limits{Bytes: 1, Files: 1},
			[]string{"nodePublishSecretRef", `"ns/pod"`, "--max-volume-bytes"}},
		{"a key that leads out", secret, content{"../../etc/passwd": "x"}, ample, []string{`"../../etc/passwd"`, `Secret "ns/s"`, "can't be a file name"}},
		{"a key with a directory", secret, content{"a/b": "x"}, ample, []string{`"a/b"`, "can't be a file name", "'/'"}},
		{"a key that is absolute", secret, content{"/etc/passwd": "x"}, ample, []string{`"/etc/passwd"`}},
		{"a key of the layout", secret, content{"..data": "x"}, ample, []string{`"..data"`}},
		{"a key that is ..", secret, content{"..": "x"}, ample, []string{`".."`}},
		{"a key that is the directory itself", secret, content{".": "x"}, ample, []string{`"."`}},
		{"a key that is nothing", secret, content{"": "x"}, ample, []string{`""`}},
		{"a key with NUL in it", secret, content{"a\x00b": "x"}, ample, []string{`"a\x00b"`}},
		{"a key that leads out further in", secret, content{"a/../../b": "x"}, ample, []string{`"a/../../b"`}},
		{"a key that is too long for a file name", secret, content{strings.Repeat("k", 256): "x"}, ample, []string{"can't be a file name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testVolume(parse(t, test.attrs, test.attrs == nil), nil)
			_, err := v.payload([]source.Content{{Data: test.content.bytes()}}, test.limits)
			isErr(t, err, ErrPrecondition, test.says...)
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("the error is not one line: %q", err)
			}
			if worthRetry(err) {
				t.Error("only a change of the object helps, yet it is taken for worth a retry")
			}
		})
	}

	t.Run("exactly the limits are no error", func(t *testing.T) {
		v := testVolume(parse(t, secret, false), nil)
		if _, err := v.payload([]source.Content{{Data: content{"a": "12345", "b": "12345"}.bytes()}}, Limits{Bytes: 10, Files: 2}); err != nil {
			t.Error(err)
		}
	})
	t.Run("nor are they with directories", func(t *testing.T) {
		v := testVolume(parse(t, items(`[{key: a, path: d/e/a}, {key: a, path: d/f/a}]`, "false"), false), nil)
		if _, err := v.payload([]source.Content{{Data: content{"a": "1"}.bytes()}}, Limits{Bytes: 2, Files: 5}); err != nil {
			t.Error(err)
		}
	})
	t.Run("what items leave out does not count", func(t *testing.T) {
		v := testVolume(parse(t, items(`[{key: a, path: a}]`, "false"), false), nil)
		if _, err := v.payload([]source.Content{{Data: content{"a": "1", "b": "12345", "../c": "x"}.bytes()}}, Limits{Bytes: 1, Files: 1}); err != nil {
			t.Error(err)
		}
	})
}

// shapes are payloads that strain a tmpfs in different ways.
func shapes() map[string]func(r *rand.Rand) projector.Payload {
	payload := func(files map[string]int) projector.Payload {
		p := projector.Payload{DirMode: 0o755, UID: 1000, GID: 1000}
		for path, size := range files {
			// The bytes of two versions differ, so that the second is written.
			p.Files = append(p.Files, projector.File{Path: path, Data: []byte(strings.Repeat(fmt.Sprint(rand.Uint32()%10), size)), Mode: 0o400, UID: 1000, GID: 1000})
		}
		return p
	}
	long := func(i, length int) string {
		s := fmt.Sprint(i)
		return s + strings.Repeat("n", length-len(s))
	}
	return map[string]func(*rand.Rand) projector.Payload{
		"nothing":             func(*rand.Rand) projector.Payload { return payload(nil) },
		"one tiny key":        func(*rand.Rand) projector.Payload { return payload(map[string]int{"k": 1}) },
		"one key of 4 MiB":    func(*rand.Rand) projector.Payload { return payload(map[string]int{"k": 4 << 20}) },
		"one key of a page":   func(*rand.Rand) projector.Payload { return payload(map[string]int{"k": 4096}) },
		"a byte above a page": func(*rand.Rand) projector.Payload { return payload(map[string]int{"k": 4097}) },
		"one file, very deep": func(*rand.Rand) projector.Payload { return payload(map[string]int{strings.Repeat("d/", 100) + "f": 1}) },
		"one long, deep path": func(*rand.Rand) projector.Payload {
			return payload(map[string]int{strings.Repeat(long(0, 250)+"/", 15) + "f": 1})
		},
		"many empty keys": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint(i), 0 }))
		},
		"many tiny keys": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint(i), 1 + i%9 }))
		},
		"other tiny keys": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint("x", i), 1 }))
		},
		"many with long names": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 500, func(i int) (string, int) { return long(i, 253), 1 }))
		},
		"links just too long to be stored inside the inode": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 300, func(i int) (string, int) { return long(i, 121), 0 }))
		},
		"a directory each": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 400, func(i int) (string, int) { return fmt.Sprint(i, "/f"), 1 }))
		},
		"nested directories": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 300, func(i int) (string, int) { return fmt.Sprintf("%d/%d/%d/f", i%3, i%7, i), 1 }))
		},
		"below one visible name": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 500, func(i int) (string, int) { return fmt.Sprint("d/", i), 1 }))
		},
		"all at random": func(r *rand.Rand) projector.Payload {
			return payload(some(r, 200, func(i int) (string, int) {
				return strings.Repeat(fmt.Sprint("d", r.IntN(4), "/"), r.IntN(4)) + long(i, 3+r.IntN(250)), r.IntN(20000)
			}))
		},
	}
}

func some(r *rand.Rand, most int, file func(i int) (string, int)) map[string]int {
	files := map[string]int{}
	for i := range 1 + r.IntN(most) {
		path, size := file(i)
		files[path] = size
	}
	return files
}

func TestRoomIsEnoughForTwoVersions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := slices.Sorted(maps.Keys(shapes()))
	for _, name := range names {
		t.Run("from "+name+" to itself and to another, and back", func(t *testing.T) {
			shape := shapes()[name]
			checkRoom(t, shape(r), shape(r))
			other := shapes()[names[r.IntN(len(names))]]
			checkRoom(t, shape(r), other(r))
			checkRoom(t, other(r), shape(r))
		})
	}
}

func FuzzRoom(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(seed)
	}
	names := slices.Sorted(maps.Keys(shapes()))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		checkRoom(t, shapes()[names[r.IntN(len(names))]](r), shapes()[names[r.IntN(len(names))]](r))
	})
}

// checkRoom writes old into a tmpfs that was made for it, lets it grow for next and writes next, as a volume's life does.
func checkRoom(t *testing.T, old, next projector.Payload) {
	t.Helper()
	features, err := tmpfs.Probe()
	if err != nil {
		t.Fatal(err)
	}
	mount, err := tmpfs.Create(tmpfs.Options{Limits: room(old), NoSwap: features.NoSwap})
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	write := func(p projector.Payload) {
		t.Helper()
		if _, err := projector.Write(mount.Dir(), p); err != nil {
			t.Fatalf("%d files do not fit into %+v: %v", len(p.Files), room(p), err)
		}
	}
	write(old)
	isMemory(t, mount, old)
	notWasteful(t, mount, old)
	if err := mount.Grow(room(next), features.NoSwap); err != nil {
		t.Fatal(err)
	}
	write(next)
	// And once more, owners alone being different: nothing grows, and the tmpfs holds what next needs.
	next.UID++
	write(next)
}

// isMemory says that a volume's share is the same for who knows its files and for who finds its tmpfs.
func isMemory(t *testing.T, mount *tmpfs.DetachedMount, p projector.Payload) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Fstatfs(mount.Dir(), &st); err != nil {
		t.Fatal(err)
	}
	found := heldBy(tmpfs.State{BytesUsed: int64(st.Blocks-st.Bfree) * st.Bsize, InodesUsed: int64(st.Files - st.Ffree)})
	if got := memory(p); got != found {
		t.Errorf("%d files take %d bytes, and when they are written %d", len(p.Files), got, found)
	}
}

// notWasteful says that the limits are at most three times what a change of version takes, apart from a fixed amount.
func notWasteful(t *testing.T, mount *tmpfs.DetachedMount, p projector.Payload) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Fstatfs(mount.Dir(), &st); err != nil {
		t.Fatal(err)
	}
	directories := map[string]bool{}
	var pages, inodes uint64
	for _, f := range p.Files {
		// A file without content takes no page, but who counts bytes to bound memory need not care.
		pages += max(1, (uint64(len(f.Data))+uint64(st.Bsize)-1)/uint64(st.Bsize))
		inodes++
		for i := range f.Path {
			if f.Path[i] == '/' {
				directories[f.Path[:i]] = true
			}
		}
	}
	peakPages := st.Blocks - st.Bfree + pages
	peakInodes := st.Files - st.Ffree + inodes + uint64(len(directories)) + 1
	got := room(p)
	if limit := (3*peakPages + 16) * uint64(st.Bsize); got.Bytes > limit {
		t.Errorf("room for %d files is %d bytes; two versions take %d", len(p.Files), got.Bytes, peakPages*uint64(st.Bsize))
	}
	if limit := 3*peakInodes + 16; got.Inodes > limit {
		t.Errorf("room for %d files is %d inodes; two versions take %d", len(p.Files), got.Inodes, peakInodes)
	}
}

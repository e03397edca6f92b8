// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestItemsAccepted(t *testing.T) {
	ab := []Item{{Key: "a", Path: "b"}}
	withMode := func(mode uint32) []Item { return []Item{{Key: "a", Path: "b", Mode: number(mode)}} }
	withIDs := func(uid, gid uint32) []Item { return []Item{{Key: "a", Path: "b", UID: number(uid), GID: number(gid)}} }
	for _, tc := range []struct {
		name, text string
		want       []Item
	}{
		{"JSON", `[{"key": "a", "path": "b"}]`, ab},
		{"JSON over several lines, with tabs", "[\n\t{\n\t\t\"key\": \"a\",\n\t\t\"path\": \"b\"\n\t}\n]\n", ab},
		{"YAML in one line", `[{key: a, path: b}]`, ab},
		{"YAML in block style", "- key: a\n  path: b\n", ab},
		{"YAML with a comment", "# why\n- key: a # here\n  path: b\n", ab},
		{"YAML with a document start", "---\n- key: a\n  path: b\n", ab},
		{"YAML with a document end", "- key: a\n  path: b\n...\n", ab},
		{"an empty list, as in the API", "[]", nil},
		{"null, as in the API", "null", nil},
		{"fields that are null", `[{"key":"a","path":"b","mode":null,"uid":null,"gid":null}]`, ab},
		{"a mode as YAML's octal, as kubectl reads it", "[{key: a, path: b, mode: 0400}]", withMode(0o400)},
		{"a mode as JSON's decimal, as the API reads it", `[{"key":"a","path":"b","mode":256}]`, withMode(0o400)},
		{"a mode as an octal string", `[{"key":"a","path":"b","mode":"0400"}]`, withMode(0o400)},
		{"a mode as an octal string without the zero", `[{"key":"a","path":"b","mode":"400"}]`, withMode(0o400)},
		{"the string 256 is octal though the number is not", `[{"key":"a","path":"b","mode":"256"}]`, withMode(0o256)},
		{"the largest mode", `[{"key":"a","path":"b","mode":511}]`, withMode(0o777)},
		{"mode 0 is not the same as no mode", `[{"key":"a","path":"b","mode":0}]`, withMode(0)},
		{"ids as numbers", "[{key: a, path: b, uid: 1000, gid: 0}]", withIDs(1000, 0)},
		{"ids as strings", `[{key: a, path: b, uid: "1000", gid: "2147483647"}]`, withIDs(1000, 2147483647)},
		{"a nested path", "[{key: a, path: b/c/d}]", []Item{{Key: "a", Path: "b/c/d"}}},
		{"one key at two paths", "[{key: a, path: b}, {key: a, path: c}]", []Item{{Key: "a", Path: "b"}, {Key: "a", Path: "c"}}},
		{"paths that look like one below the other", "[{key: a, path: b}, {key: a, path: b.c}, {key: a, path: bc/d}, {key: a, path: b-/e}]",
			[]Item{{Key: "a", Path: "b"}, {Key: "a", Path: "b.c"}, {Key: "a", Path: "bc/d"}, {Key: "a", Path: "b-/e"}}},
		{"a path with ampersand and star", `[{key: a, path: "b&c * d"}]`, []Item{{Key: "a", Path: "b&c * d"}}},
		{"a date is text", "[{key: 2001-01-01, path: b}]", []Item{{Key: "2001-01-01", Path: "b"}}},
		{"a path in another script", `[{key: a, path: "ключ"}]`, []Item{{Key: "a", Path: "ключ"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec, errs := Parse(with("items", tc.text), false)
			if len(errs) > 0 {
				t.Fatal(text(errs))
			}
			if !spec.Equal(specOf(Source{Object: Object{Secret, "keys"}, Mode: 0o400, Items: tc.want})) {
				t.Errorf("got %+v, want %+v", spec.Sources[0].Items, tc.want)
			}
			if len(tc.want) == 0 && spec.Sources[0].Items != nil {
				t.Errorf("every key must be nil, got %#v", spec.Sources[0].Items)
			}
		})
	}
}

func TestItemsRefused(t *testing.T) {
	path := func(p string) string { return fmt.Sprintf("[{key: a, path: %q}]", p) }
	const at = "volumeAttributes[items]"
	for _, tc := range []struct {
		name, text string
		want       []string // exactly these lines, each by its beginning and, after "...", a part of the rest
	}{
		{"no list", "a", []string{at + `: Invalid value: "a"...this is no list`}},
		{"a single mapping", "{key: a, path: b}", []string{at + ": Invalid...put it in a list"}},
		{"only white space", " \n", []string{at + ": Invalid...there is nothing in it"}},
		{"only a comment", "# soon", []string{at + ": Invalid...there is nothing in it"}},
		{"unfinished JSON", `[{"key": "a"`, []string{at + ": Invalid...did not find expected"}},
		{"trailing data (H-084)", "[{key: a, path: b}] x", []string{at + ": Invalid...something follows the list"}},
		{"a second JSON list (H-084)", "[] []", []string{at + ": Invalid...something follows the list"}},
		{"a closing bracket too many", "[]]", []string{at + ": Invalid...something follows the list"}},
		{"a second document (H-084)", "- key: a\n  path: b\n---\n- key: c\n  path: d\n", []string{at + ": Invalid...something follows the list"}},
		{"a second document that is empty", "[]\n---\n", []string{at + ": Invalid...something follows the list"}},
		{"a duplicate field (H-084)", `[{"key":"a","key":"b","path":"c"}]`, []string{at + `: Invalid...key "key" already set`}},
		{"a duplicate field in another item's shadow", "[{key: a, path: b}, {key: a, path: c, mode: 1, mode: 1}]", []string{at + ": Invalid...already set"}},
		{"an anchor", "[&x {key: a, path: b}]", []string{at + ": Invalid...anchors and aliases"}},
		{"an anchor and an alias", "- key: &k a\n  path: *k\n", []string{at + ": Invalid...anchors and aliases"}},
		{"an alias of nothing", "[{key: *k, path: b}]", []string{at + ": Invalid...unknown anchor"}},
		{"a control character", "[{key: a, path: \"b\x01\"}]", []string{at + ": Invalid...control characters"}},
		{"bytes that are no UTF-8", "[{key: a, path: \"b\xff\"}]", []string{at + ": Invalid...UTF-8"}},
		{"a list as a field's name", "[{[a]: b}]", []string{at + ": Invalid...invalid map key"}},

		{"an unknown field (H-084)", "[{key: a, path: b, pth: c}]", []string{at + `[0].pth: Forbidden: unknown field; the nearest known one is "path"`}},
		{"a field in upper case", "[{Key: a, path: b}]", []string{at + `[0].Key: Forbidden..."key"`, at + "[0].key: Required"}},
		{"KEP-5936's spelling", "[{key: a, path: b, user: 5}]", []string{at + `[0].user: Forbidden: unknown field: it is called "uid" here`}},
		{"a field that is no string", "[{key: a, path: b, 1: c, yes: d}]", []string{at + "[0].1: Forbidden", at + "[0].true: Forbidden"}},
		{"an item that is null", "[null]", []string{at + "[0]: Invalid value: \"null\": must be a mapping"}},
		{"an item that is text", "[{key: a, path: b}, a]", []string{at + `[1]: Invalid value: "a": must be a mapping`}},
		{"an item that is a list", "[[a]]", []string{at + `[0]: Invalid value: "a list": must be a mapping`}},
		{"a key that is a number", "[{key: 1, path: b}]", []string{at + `[0].key: Invalid value: "1": must be a string: put it in quotes`}},
		{"a path that is a boolean", "[{key: a, path: yes}]", []string{at + `[0].path: Invalid value: "true": must be a string`}},
		{"a path that YAML takes for a boolean", "[{key: a, path: y}]", []string{at + `[0].path: Invalid value: "true"...y or no for a boolean`}},
		{"a path that is a mapping", "[{key: a, path: {}}]", []string{at + `[0].path: Invalid value: "a mapping": must be a string`}},
		{"no path", "[{key: a}]", []string{at + "[0].path: Required value: an item needs a path; it is usually the same as its key"}},
		{"an empty path (H-079)", path(""), []string{at + "[0].path: Required"}},
		{"a path that is null", "[{key: a, path: ~}]", []string{at + "[0].path: Required"}},
		{"no key", "[{path: b}]", []string{at + "[0].key: Required"}},
		{"an empty key", `[{key: "", path: b}]`, []string{at + "[0].key: Required"}},
		{"an empty item", "[{}]", []string{at + "[0].key: Required", at + "[0].path: Required"}},
		{"a key that no object can have", `[{key: "a/b", path: b}]`, []string{at + `[0].key: Invalid value: "a/b": a valid config key`}},
		{"a key that is ..", "[{key: .., path: b}]", []string{at + "[0].key: Invalid...must not be '..'"}},
		{"a key that is too long", "[{key: " + strings.Repeat("k", 254) + ", path: b}]", []string{at + "[0].key: Invalid...no more than 253"}},

		{"an absolute path (H-075)", path("/abs"), []string{at + `[0].path: Invalid value: "/abs": must be relative`}},
		{"the writer's own link (H-076)", path("..data"), []string{at + "[0].path: Invalid...must not start with '..'"}},
		{"a path that starts with dots (H-076)", path("..x"), []string{at + "[0].path: Invalid...must not start with '..'"}},
		{"a path that climbs (H-076)", path("a/../b"), []string{at + "[0].path: Invalid...the element '..'"}},
		{"the same path twice (H-078)", "[{key: a, path: x}, {key: b, path: z}, {key: c, path: x}]",
			[]string{at + `[2].path: Invalid value: "x": items[0] and items[2] have the same path`}},
		{"the same path three times", "[{key: a, path: x}, {key: b, path: x}, {key: c, path: x}]",
			[]string{at + "[1].path: Invalid...items[0] and items[1]", at + "[2].path: Invalid...items[0] and items[2]"}},
		{"a file and a directory of one name", "[{key: a, path: x}, {key: b, path: x.y}, {key: c, path: x/y}]",
			[]string{at + `[2].path: Invalid value: "x/y": items[0] makes "x" a file, but items[2] needs it to be a directory for "x/y"`}},
		{"a directory and, later, a file of one name", "[{key: a, path: x/y/z}, {key: b, path: x}]",
			[]string{at + `[1].path: Invalid value: "x": items[1] makes "x" a file, but items[0] needs it to be a directory`}},
		{"a path that ends in a slash (H-079)", path("a/"), []string{at + "[0].path: Invalid...empty element"}},
		{"a path with two slashes (H-079)", path("a//b"), []string{at + "[0].path: Invalid...empty element"}},
		{"a path with a dot (H-079)", path("./a"), []string{at + "[0].path: Invalid...the element '.'"}},
		{"NUL in a path (H-082)", `[{key: a, path: "b\u0000c"}]`, []string{at + `[0].path: Invalid value: "b\x00c": must not contain control`}},
		{"a line break in a path (H-082)", `[{key: a, path: "b\nc"}]`, []string{at + `[0].path: Invalid value: "b\nc": must not contain control`}},
		{"a backslash in a path (H-082)", `[{key: a, path: "b\\c"}]`, []string{at + "[0].path: Invalid"}},
		{"a colon in a path (H-082)", path("b:c"), []string{at + "[0].path: Invalid"}},

		{"a mode that forgot its zero", "[{key: a, path: b, mode: 600}]", []string{at + `[0].mode: Invalid value: "600": as in the Kubernetes API...octal digits as a string`}},
		{"a mode beyond 0777", "[{key: a, path: b, mode: 01777}]", []string{at + "[0].mode: Invalid"}},
		{"a mode of 512", "[{key: a, path: b, mode: 512}]", []string{at + "[0].mode: Invalid"}},
		{"a mode below 0", "[{key: a, path: b, mode: -1}]", []string{at + `[0].mode: Invalid value: "-1"`}},
		{"a mode that wraps around", "[{key: a, path: b, mode: 4294967552}]", []string{at + "[0].mode: Invalid"}},
		{"a mode with a fraction", "[{key: a, path: b, mode: 256.0}]", []string{at + "[0].mode: Invalid"}},
		{"a mode that is a boolean", "[{key: a, path: b, mode: true}]", []string{at + "[0].mode: Invalid"}},
		{"a mode that is a list", "[{key: a, path: b, mode: [256]}]", []string{at + `[0].mode: Invalid value: "a list"`}},
		{"a mode that is bad text", `[{key: a, path: b, mode: "0o400"}]`, []string{at + "[0].mode: Invalid...must be octal"}},
		{"a mode that is empty text", `[{key: a, path: b, mode: ""}]`, []string{at + `[0].mode: Invalid value: ""`}},
		{"ids out of range", "[{key: a, path: b, uid: 2147483648, gid: 4294967295}]", []string{at + "[0].uid: Invalid", at + "[0].gid: Invalid"}},
		{"an id beyond 64 bits", "[{key: a, path: b, uid: 18446744073709551616}]", []string{at + "[0].uid: Invalid"}},
		{"an id that is nearly 64 bits", "[{key: a, path: b, uid: 18446744073709551615}]", []string{at + "[0].uid: Invalid"}},
		{"an id below 0", "[{key: a, path: b, uid: -1}]", []string{at + "[0].uid: Invalid"}},
		{"an id in scientific notation", "[{key: a, path: b, uid: 1e3}]", []string{at + "[0].uid: Invalid"}},
		{"an id that is not a number", "[{key: a, path: b, uid: .nan}]", []string{at + `[0].uid: Invalid value: "NaN"`}},
		{"ids that are bad text", `[{key: a, path: b, uid: root, gid: "01000"}]`, []string{at + "[0].uid: Invalid", at + "[0].gid: Invalid"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Split(refused(t, with("items", tc.text), false), "\n")
			if len(got) != len(tc.want) {
				t.Fatalf("got %d messages, want %d:\n%s", len(got), len(tc.want), strings.Join(got, "\n"))
			}
			for i, want := range tc.want {
				begin, part, _ := strings.Cut(want, "...")
				if !strings.HasPrefix(got[i], begin) || !strings.Contains(got[i][len(begin):], part) {
					t.Errorf("got  %s\nwant %s", got[i], want)
				}
			}
		})
	}
}

// threadTime is what the calling thread has had of a processor: what other programs take does not count.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// TestItemsAreBoundedInTimeAndMemory is H-084's second half. The documents are the worst known for YAML decoders.
func TestItemsAreBoundedInTimeAndMemory(t *testing.T) {
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s*%c]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 8), c-1)
	}
	manyItems := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "- {key: k, path: p%d}\n", i)
		}
		return b.String()
	}
	for _, tc := range []struct{ name, text, want string }{
		{"a string of a mebibyte", `["` + strings.Repeat("x", 1<<20) + `"]`, "Too long: may not be more than 65536 bytes"},
		{"64 KiB and a byte", strings.Repeat(" ", maxListText+1), "Too long"},
		{"lists nested 10000 deep", strings.Repeat("[", 10000) + strings.Repeat("]", 10000), "nested too deeply"},
		{"lists that are never closed", strings.Repeat("[", maxListText), "nested too deeply"},
		{"mappings nested 10000 deep", strings.Repeat("{a: ", 10000) + strings.Repeat("}", 10000), "nested too deeply"},
		{"JSON objects nested 10000 deep", strings.Repeat(`{"a":`, 10000) + "1" + strings.Repeat("}", 10000), "nested too deeply"},
		{"dashes nested 10000 deep", strings.Repeat("- ", 10000) + "a", "nested too deeply"},
		{"question marks nested 10000 deep", strings.Repeat("? ", 10000) + "a", "nested too deeply"},
		{"as deep as the guard lets through", strings.Repeat("[", maxOpenings) + strings.Repeat("]", maxOpenings), "[items][0]: Invalid value: \"a list\""},
		{"mappings as deep as the guard lets through", strings.Repeat("{a: ", maxOpenings) + strings.Repeat("}", maxOpenings), "put it in a list"},
		{"a billion laughs", laughs, "anchors and aliases"},
		{"as many scalars as fit", "[" + strings.Repeat("a,", 32000) + "]", "Too many: 32000: must have at most 1024 items"},
		{"1025 items", manyItems(1025), "Too many: 1025: must have at most 1024 items"},
		{"more items than the guard lets through", "[" + strings.Repeat("{},", 5000) + "]", "more than 1024 items"},
		{"1024 items, all bad", "[" + strings.Repeat("{},", 1024) + "]", "Too many: 2048: problems; only the first 32 are listed"},
		{"long paths below one another", "[" + strings.Repeat("{key: a, path: "+strings.Repeat("a/", 2000)+"a},", 15) + "]", "items[0] and items[1] have the same path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := threadTime(t)
			got := refused(t, with("items", tc.text), false)
			took := threadTime(t) - start
			runtime.ReadMemStats(&after)
			if !strings.Contains(got, tc.want) {
				t.Errorf("message lacks %q: %.500s", tc.want, got)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 24<<20 {
				t.Errorf("allocated %d KiB", allocated>>10)
			}
			// The rule is 50 ms of a processor. The test allows for the race detector and for slow machines.
			if took > time.Second {
				t.Errorf("took %v", took)
			}
			t.Logf("%v, %d KiB allocated", took, (after.TotalAlloc-before.TotalAlloc)>>10)
		})
	}
	if spec, errs := Parse(with("items", manyItems(1024)), false); len(errs) > 0 || len(spec.Sources[0].Items) != 1024 {
		t.Errorf("1024 items: got %d, %s", len(spec.Sources[0].Items), text(errs))
	}
}

func BenchmarkItemsNestedDeep(b *testing.B) {
	context := with("items", strings.Repeat("[", maxOpenings)+strings.Repeat("]", maxOpenings))
	b.ReportAllocs()
	for b.Loop() {
		Parse(context, false)
	}
}

func BenchmarkItemsFull(b *testing.B) {
	var list strings.Builder
	for i := range maxItems {
		fmt.Fprintf(&list, "- {key: k, path: p%d, mode: 0400}\n", i)
	}
	context := with("items", list.String())
	b.ReportAllocs()
	for b.Loop() {
		Parse(context, false)
	}
}

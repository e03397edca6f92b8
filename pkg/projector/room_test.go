// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shapes are payloads whose use of a tmpfs is extreme in different ways.
func shapes() map[string]func(r *rand.Rand) Payload {
	payload := func(sizes map[string]int) Payload {
		p := payload()
		for path, size := range sizes {
			// The bytes of two versions differ, so that the second version is written.
			p.Files = append(p.Files, file(path, strings.Repeat(fmt.Sprint(rand.Uint32()%10), size)))
		}
		return p
	}
	long := func(i, length int) string {
		s := fmt.Sprint(i)
		return s + strings.Repeat("n", length-len(s))
	}
	return map[string]func(*rand.Rand) Payload{
		"nothing":             func(*rand.Rand) Payload { return payload(nil) },
		"one tiny key":        func(*rand.Rand) Payload { return payload(map[string]int{"k": 1}) },
		"one key of 4 MiB":    func(*rand.Rand) Payload { return payload(map[string]int{"k": 4 << 20}) },
		"one key of a page":   func(*rand.Rand) Payload { return payload(map[string]int{"k": 4096}) },
		"a byte above a page": func(*rand.Rand) Payload { return payload(map[string]int{"k": 4097}) },
		"one file, very deep": func(*rand.Rand) Payload {
			return payload(map[string]int{strings.Repeat("d/",
				100) + "f": 1})
		},
		"one long, deep path": func(*rand.Rand) Payload {
			return payload(map[string]int{strings.Repeat(long(0, 250)+"/", 15) + "f": 1})
		},
		"many empty keys": func(r *rand.Rand) Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint(i), 0 }))
		},
		"many tiny keys": func(r *rand.Rand) Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint(i), 1 + i%9 }))
		},
		"other tiny keys": func(r *rand.Rand) Payload {
			return payload(some(r, 1000, func(i int) (string, int) { return fmt.Sprint("x", i), 1 }))
		},
		"many with long names": func(r *rand.Rand) Payload {
			return payload(some(r, 500, func(i int) (string, int) { return long(i, 253), 1 }))
		},
		"links just too long to be stored inside the inode": func(r *rand.Rand) Payload {
			return payload(some(r, 300, func(i int) (string, int) { return long(i, 121), 0 }))
		},
		"a directory each": func(r *rand.Rand) Payload {
			return payload(some(r, 400, func(i int) (string, int) { return fmt.Sprint(i, "/f"), 1 }))
		},
		"nested directories": func(r *rand.Rand) Payload {
			return payload(some(r, 300, func(i int) (string, int) { return fmt.Sprintf("%d/%d/%d/f", i%3, i%7, i), 1 }))
		},
		"below one visible name": func(r *rand.Rand) Payload {
			return payload(some(r, 500, func(i int) (string, int) { return fmt.Sprint("d/", i), 1 }))
		},
		"directories without files": func(r *rand.Rand) Payload {
			p := payload(map[string]int{"0/f": 1})
			for path := range some(r, 300, func(i int) (string, int) { return fmt.Sprintf("%d/%s", i%3, long(i, 150)), 0 }) {
				p.Directories = append(p.Directories, path)
			}
			return p
		},
		"mount points": func(r *rand.Rand) Payload {
			p := payload(map[string]int{"f": 1})
			for path := range some(r, 300, func(i int) (string, int) { return fmt.Sprintf("%d/%d/%d", i%3, i%7, i), 0 }) {
				p.MountPoints = append(p.MountPoints, "m"+path)
			}
			return p
		},
		"all at random": func(r *rand.Rand) Payload {
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
	names := slices.Sorted(maps.Keys(shapes()))
	forEachLayout(t, func(t *testing.T, layout Layout) {
		r := rand.New(rand.NewPCG(1, 2))
		for _, name := range names {
			t.Run("from "+name+" to itself and to another, and back", func(t *testing.T) {
				shape := shapes()[name]
				checkRoom(t, layout, shape(r), shape(r))
				other := shapes()[names[r.IntN(len(names))]]
				checkRoom(t, layout, shape(r), other(r))
				checkRoom(t, layout, other(r), shape(r))
			})
		}
	})
}

// TestRoomForFilesThatGrow checks that the room is enough for files that grow: the new files exist twice before the old
// ones are removed.
func TestRoomForFilesThatGrow(t *testing.T) {
	small, large := file("a", "x"), file("b", strings.Repeat("x", 1<<20))
	grown, shrunk := file("a", strings.Repeat("y", 1<<20)), file("b", "y")
	forEachLayout(t, func(t *testing.T, layout Layout) {
		checkRoom(t, layout, payload(small, large), payload(grown, shrunk))
	})
}

func FuzzRoom(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(seed)
	}
	names := slices.Sorted(maps.Keys(shapes()))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		layout := Layout(r.IntN(int(InPlace) + 1))
		checkRoom(t, layout, shapes()[names[r.IntN(len(names))]](r), shapes()[names[r.IntN(len(names))]](r))
	})
}

// checkRoom writes old into a tmpfs that has room only for old, makes room for next, and writes next.
func checkRoom(t *testing.T, layout Layout, old, next Payload) {
	t.Helper()
	old.Layout, next.Layout = layout, layout
	bytes, inodes := old.Room()
	dir := newVolume(t, roomOption(bytes, inodes))
	fits := func(p Payload) {
		t.Helper()
		if _, err := tryWrite(t, dir, p); err != nil {
			t.Fatalf("%d files, %d directories and %d mount points do not fit into %d bytes and %d inodes: %v",
				len(p.Files), len(p.Directories), len(p.MountPoints), bytes, inodes, err)
		}
	}
	fits(old)
	check(t, dir, old)
	isMemory(t, dir, old)
	notWasteful(t, dir, old)
	nextBytes, nextInodes := next.Room()
	bytes, inodes = max(bytes, nextBytes), max(inodes, nextInodes)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, roomOption(bytes, inodes)); err != nil {
		t.Fatal(err)
	}
	fits(next)
	// The same files with another owner are a new version, but nothing grows.
	next.UID++
	fits(next)
}

func roomOption(bytes, inodes uint64) string {
	return fmt.Sprintf("size=%d,nr_inodes=%d", bytes, inodes)
}

// isMemory checks that Memory agrees with the usage of the tmpfs that holds p.
func isMemory(t *testing.T, dir string, p Payload) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	found := int64(st.Blocks-st.Bfree)*st.Bsize + InodeBytes*int64(st.Files-st.Ffree)
	if got := p.Memory(); got != found {
		t.Errorf("%d files, %d directories and %d mount points take %d bytes, and when they are written %d",
			len(p.Files), len(p.Directories), len(p.MountPoints), got, found)
	}
}

// notWasteful checks that the room is at most three times the usage during a refresh, plus a fixed amount.
func notWasteful(t *testing.T, dir string, p Payload) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	var pages uint64
	for _, f := range p.Files {
		// A file without content takes no page, but one page for each file is no waste.
		pages += max(1, (uint64(len(f.Data))+uint64(st.Bsize)-1)/uint64(st.Bsize))
	}
	_, names := p.layout()
	pages = max(pages, uint64(len(names))) // a long link takes a page
	peakPages := st.Blocks - st.Bfree + pages
	peakInodes := st.Files - st.Ffree + uint64(len(p.Files)+p.DirectoryCount()) + 1
	bytes, inodes := p.Room()
	if limit := (3*peakPages + 16) * uint64(st.Bsize); bytes > limit {
		t.Errorf("room for %d files is %d bytes; two versions take %d", len(p.Files), bytes, peakPages*uint64(st.Bsize))
	}
	if limit := 3*peakInodes + 16; inodes > limit {
		t.Errorf("room for %d files is %d inodes; two versions take %d", len(p.Files), inodes, peakInodes)
	}
}

func TestMemoryCountsWholePagesAndEachInode(t *testing.T) {
	page := int64(os.Getpagesize())
	long := strings.Repeat("n", 128-len("..data/"))
	for _, test := range []struct {
		name          string
		p             Payload
		pages, inodes int64
		directories   int
	}{
		{"nothing but root, ..data and the generation", payload(), 0, 3, 0},
		{"a file and its link", payload(file("a", "1")), 1, 5, 0},
		{"a file without content", payload(file("a", "")), 0, 5, 0},
		{"a byte more than a page", payload(file("a", strings.Repeat("x", int(page)+1))), 2, 5, 0},
		{"two files in a directory", payload(file("d/a", "1"), file("d/b", "1")), 2, 7, 1},
		{"a link that is too long for its inode", payload(file(long, "")), 1, 5, 0},
		{"a link that just fits", payload(file(long[1:], "")), 0, 5, 0},
		{"a directory without files", Payload{Directories: []string{"a/b"}}, 0, 6, 2},
		{"a directory that has a file", Payload{Directories: []string{"d"}, Files: []File{file("d/a", "")}}, 0, 6, 1},
		{"directories that a file is in the way of",
			Payload{Directories: []string{"a", "a/x", "d/b/x"}, Files: []File{file("a", ""), file("d/b", "")}}, 0, 8, 1},
		{"a directory beneath a mount point", Payload{MountPoints: []string{"m"}, Directories: []string{"m/n"}}, 0, 5, 2},
		{"a mount point, which has no link", Payload{MountPoints: []string{"m/n"}}, 0, 5, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, want := test.p.Memory(), test.pages*page+test.inodes*InodeBytes; got != want {
				t.Errorf("got %d bytes, want %d", got, want)
			}
			if got := test.p.DirectoryCount(); got != test.directories {
				t.Errorf("got %d directories, want %d", got, test.directories)
			}
			dir := newVolume(t, "size=1m")
			write(t, dir, test.p)
			isMemory(t, dir, test.p)
		})
	}
}

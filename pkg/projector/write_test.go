// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestLayoutOwnersAndModes(t *testing.T) {
	many := payload()
	for i := range 1000 {
		many.Files = append(many.Files, file(fmt.Sprintf("dir%d/key%d", i%10, i), fmt.Sprint(i)),
			file(fmt.Sprintf("key%d", i), "x"))
	}
	modes := Payload{DirMode: 0o711, UID: 1, GID: 2}
	for i, mode := range []uint32{0, 0o777, 0o400, 0o440, 0o200, 0o111, 0o020, 0o002} {
		modes.Files = append(modes.Files, File{Path: fmt.Sprintf("%04o", mode), Mode: mode, UID: uint32(i),
			GID: uint32(100 + i), Data: []byte("x")})
	}
	cases := map[string]Payload{
		"one key":               payload(file("key", "value")),
		"keys and nested paths": keys(), "nothing": payload(),
		"an empty file": payload(file("empty", "")), "every kind of mode and owner per file": modes,
		"directory mode 0000": {Files: keys().Files, DirMode: 0, UID: 7, GID: 8},
		"directory mode 0777": {Files: keys().Files, DirMode: 0o777, UID: 7, GID: 8},
		"root owns all":       {Files: []File{{Path: "a/b", Mode: 0o444}}, DirMode: 0o755},
		"the largest ids that the API gives": {Files: []File{{Path: "a", UID: 1<<31 - 1, GID: 1<<31 - 1}}, DirMode: 0o700,
			UID: 1<<31 - 1, GID: 1<<31 - 1},
		"the largest ids that the kernel stores": {Files: []File{{Path: "a", UID: 1<<32 - 2, GID: 1<<32 - 2}}, DirMode: 0o700,
			UID: 1<<32 - 2, GID: 1<<32 - 2},
		"a file of 1 MiB":              payload(file("big", strings.Repeat("0123456789abcdef", 1<<16))),
		"2000 files in 11 directories": many,
		"names that need care": payload(file(".hidden", "1"), file("a b", "2"), file("-rf", "3"), file("*", "4"),
			file("new\nline", "5"), file("ü", "6"),
			file("data", "7"), file("x/..data", "8"), file("x/..2026_11_23_10_00_00.1", "9"), file("x...", "10"),
			file(`\040`, "11")),
		"the longest name":  payload(file(strings.Repeat("n", 255), "1"), file("d/"+strings.Repeat("m", 255), "2")),
		"the deepest path":  payload(file(strings.Repeat("d/", 2047)+"f", "deep")),
		"bytes, not a text": payload(file("bytes", "\x00\xff\r\n\x00")),
	}
	forEachLayout(t, func(t *testing.T, layout Layout) {
		for name, p := range cases {
			p.Layout = layout
			for _, umask := range []int{0, 0o077, 0o777} {
				t.Run(fmt.Sprintf("%s, umask %03o", name, umask), func(t *testing.T) {
					testkit.NothingLeft(t)
					defer syscall.Umask(syscall.Umask(umask))
					if name == "the deepest path" {
						deep(t, p)
					} else {
						writtenOnce(t, p)
					}
				})
			}
		}
	})
}

func writtenOnce(t *testing.T, p Payload) {
	t.Helper()
	dir := newVolume(t, "")
	if !write(t, dir, p) {
		t.Error("first write: changed is false")
	}
	before := snapshot(t, dir)
	if write(t, dir, p) {
		t.Error("second write of the same: changed is true")
	}
	sameSnapshot(t, "second write of the same", before, snapshot(t, dir))
	if !write(t, dir, Payload{Layout: p.Layout, DirMode: 0o750, UID: 5, GID: 6}) {
		t.Error("write of nothing: changed is false")
	}
}

// deep does the same as TestLayout for a path that is too long for a lookup.
func deep(t *testing.T, p Payload) {
	t.Helper()
	dir := newVolume(t, "")
	for _, want := range []bool{true, false} {
		if changed, err := tryWrite(t, dir, p); err != nil || changed != want {
			t.Fatalf("changed %v, want %v; %v", changed, want, err)
		}
	}
	p.Files = nil
	write(t, dir, p)
	isMemory(t, dir, p)
}

func TestEqualPayloadTouchesNothing(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		testkit.NothingLeft(t)
		dir := newVolume(t, "")
		p := keys()
		p.Layout = layout
		write(t, dir, p)
		events := watch(t, dir)
		before := snapshot(t, dir)
		for i := range p.Files { // also in another order
			p.Files[0], p.Files[i] = p.Files[i], p.Files[0]
			if write(t, dir, p) {
				t.Error("changed is true")
			}
		}
		sameSnapshot(t, "equal payload", before, snapshot(t, dir))
		if got := events(); got != nil {
			t.Errorf("a watcher saw events: %v", got)
		}
		p.Files[0].Data = []byte("other")
		write(t, dir, p)
		if events() == nil {
			t.Error("a watcher saw nothing of a change: the check above shows nothing")
		}
	})
}

// watch watches all directories with inotify. It returns a function that returns the masks of the events since its last
// call.
func watch(t testing.TB, dir string) func() []uint32 {
	t.Helper()
	in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(in) })
	for _, path := range walk(t, dir) {
		if look(t, filepath.Join(dir, path)).kind != unix.S_IFDIR {
			continue
		}
		const mask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVE | unix.IN_CLOSE_WRITE |
			unix.IN_DELETE_SELF
		if _, err := unix.InotifyAddWatch(in, filepath.Join(dir, path), mask); err != nil {
			t.Fatal(err)
		}
	}
	return func() (masks []uint32) {
		buf := make([]byte, 1<<16)
		n, err := unix.Read(in, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < n; {
			masks = append(masks, le32(buf[at+4:]))
			at += unix.SizeofInotifyEvent + int(le32(buf[at+12:]))
		}
		return masks
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func TestEveryDifferenceIsWritten(t *testing.T) {
	cases := map[string]func(p *Payload){
		"only a file's mode":                           func(p *Payload) { p.Files[0].Mode = 0o600 },
		"only a file's mode, to 0000":                  func(p *Payload) { p.Files[0].Mode = 0 },
		"only a file's uid":                            func(p *Payload) { p.Files[2].UID++ },
		"only a file's gid":                            func(p *Payload) { p.Files[2].GID++ },
		"only the mode of directories":                 func(p *Payload) { p.DirMode = 0o750 },
		"only the uid of directories and links":        func(p *Payload) { p.UID++ },
		"only the gid of directories and links":        func(p *Payload) { p.GID++ },
		"only content, of the same size":               func(p *Payload) { p.Files[0].Data = []byte("Private") },
		"only content, the last byte of a nested file": func(p *Payload) { p.Files[3].Data = []byte("maiN") },
		"content is shorter":                           func(p *Payload) { p.Files[0].Data = []byte("privat") },
		"content is longer":                            func(p *Payload) { p.Files[0].Data = []byte("private\n") },
		"content is gone":                              func(p *Payload) { p.Files[0].Data = nil },
		"a key is added": func(p *Payload) {
			p.Files = append(p.Files, file("added", "new"))
		},
		"an empty key is added": func(p *Payload) { p.Files = append(p.Files, file("added", "")) },
		"a nested key is added": func(p *Payload) {
			p.Files = append(p.Files, file("conf/d/20", "20"))
		},
		"a key is removed":                           func(p *Payload) { p.Files = p.Files[1:] },
		"a nested key is removed, and its directory": func(p *Payload) { p.Files = append(p.Files[:2], p.Files[3]) },
		"a whole directory is removed":               func(p *Payload) { p.Files = p.Files[:2] },
		"a key is renamed":                           func(p *Payload) { p.Files[0].Path = "id_ed25519" },
		"a nested key is renamed":                    func(p *Payload) { p.Files[2].Path = "conf/d/20.conf" },
		"two keys change places": func(p *Payload) {
			p.Files[0].Path, p.Files[1].Path = p.Files[1].Path, p.Files[0].Path
		},
		"a file becomes a directory":        func(p *Payload) { p.Files[0].Path = "id_rsa/key" },
		"a nested file becomes a directory": func(p *Payload) { p.Files[2].Path = "conf/d/ten.conf/x" },
		"a directory becomes a file": func(p *Payload) {
			p.Files = append(p.Files[:2], file("conf", "now a file"))
		},
		"everything goes":                                func(p *Payload) { p.Files = nil },
		"everything is another":                          func(p *Payload) { *p = payload(file("x", "y")) },
		"a large file, one byte beyond the first 32 KiB": func(p *Payload) { p.Files[4].Data[40000]++ },
	}
	forEachLayout(t, func(t *testing.T, layout Layout) {
		for name, change := range cases {
			t.Run(name, func(t *testing.T) { differenceIsWritten(t, layout, change) })
		}
	})
}

func differenceIsWritten(t *testing.T, layout Layout, change func(p *Payload)) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	original := func() Payload {
		p := keys()
		p.Layout = layout
		p.Files = append(p.Files, File{Path: "large", Data: make([]byte, 50000), Mode: 0o444})
		return p
	}
	changed := original()
	change(&changed)
	changed.Layout = layout
	write(t, dir, original())
	if !write(t, dir, changed) {
		t.Error("there: changed is false")
	}
	if write(t, dir, changed) {
		t.Error("there again: changed is true")
	}
	if !write(t, dir, original()) {
		t.Error("and back: changed is false")
	}
}

func TestBadPayload(t *testing.T) {
	file := func(path string) Payload { return payload(file("good", "1"), file(path, "2")) }
	cases := map[string]Payload{
		"an empty path":                    file(""),
		"the directory itself":             file("."),
		"the parent":                       file(".."),
		"below the parent":                 file("../victim"),
		"far above":                        file("../../../../etc/passwd"),
		"up in the middle":                 file("a/../b"),
		"up and out in the middle":         file("a/../../b"),
		"up at the end":                    file("a/.."),
		"an absolute path":                 file("/etc/passwd"),
		"a dot component":                  file("./a"),
		"a dot in the middle":              file("a/./b"),
		"a double slash":                   file("a//b"),
		"a slash at the end":               file("a/"),
		"a NUL byte":                       file("a\x00b"),
		"no UTF-8":                         file("a\xff"),
		"..data":                           file("..data"),
		"below ..data":                     file("..data/x"),
		"..data_tmp":                       file("..data_tmp"),
		"a generation's name":              file("..2026_11_23_10_00_00.1"),
		"any name that starts with ..":     file("..x"),
		"three dots":                       file("..."),
		"the same path twice":              file("good"),
		"a file below a file":              file("good/below"),
		"a file far below a file":          file("good/far/below"),
		"a file where a directory is":      payload(File{Path: "a/b"}, File{Path: "a"}),
		"a component of 256 bytes":         file(strings.Repeat("n", 256)),
		"a nested component of 256 bytes":  file("a/" + strings.Repeat("n", 256) + "/b"),
		"a component of 256 bytes, as ü":   file(strings.Repeat("ü", 128)),
		"a path of 4097 bytes":             file(strings.Repeat("d/", 2048) + "f"),
		"setuid":                           payload(File{Path: "a", Mode: 0o4755}),
		"setgid":                           payload(File{Path: "a", Mode: 0o2755}),
		"sticky":                           payload(File{Path: "a", Mode: 0o1755}),
		"a file type in the mode":          payload(File{Path: "a", Mode: 0o100644}),
		"Go's own bits in the mode":        payload(File{Path: "a", Mode: uint32(os.ModeSetuid | 0o755)}),
		"a directory mode with setgid":     {DirMode: 0o2755},
		"a directory mode with sticky bit": {DirMode: 0o1777},
		"a directory mode with its type":   {DirMode: 0o40755},
	}
	for name, p := range cases {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			dir := newVolume(t, "")
			write(t, dir, keys())
			outside := filepath.Dir(filepath.Dir(dir))
			before := snapshot(t, outside)
			changed, err := tryWrite(t, dir, p)
			if !errors.Is(err, ErrBadPayload) || changed {
				t.Errorf("changed %v, error %v", changed, err)
			}
			if err != nil && (strings.ContainsAny(err.Error(), "\n\x00") || !utf8.ValidString(err.Error())) {
				t.Errorf("the message is not fit for a log line: %q", err)
			}
			sameSnapshot(t, "bad payload", before, snapshot(t, outside))
			check(t, dir, keys())
		})
	}
}

func TestIDThatChownIgnores(t *testing.T) {
	// For chown(2), 2^32-1 means no change. Without the check, such a file would silently belong to root.
	bad := func(change func(p *Payload)) Payload { p := keys(); change(&p); return p }
	for name, p := range map[string]Payload{
		"uid of a file":         bad(func(p *Payload) { p.Files[3].UID = 1<<32 - 1 }),
		"gid of a file":         bad(func(p *Payload) { p.Files[3].GID = 1<<32 - 1 }),
		"uid of directories":    bad(func(p *Payload) { p.UID = 1<<32 - 1 }),
		"gid of directories":    bad(func(p *Payload) { p.GID = 1<<32 - 1 }),
		"uid of an only, empty": {Files: []File{{Path: "a", UID: 1<<32 - 1}}, DirMode: 0o755, UID: 1000, GID: 2000},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			dir := newVolume(t, "")
			write(t, dir, keys())
			if changed, err := tryWrite(t, dir, p); err == nil || changed {
				t.Errorf("changed %v, error %v", changed, err)
			}
			check(t, dir, keys())
		})
	}
}

func TestRootThatIsNoDirectory(t *testing.T) {
	testkit.NothingLeft(t)
	for name, open := range map[string]func() int{
		"a closed descriptor": func() int { return 1 << 20 },
		"a regular file": func() int {
			fd, err := unix.Open(filepath.Join(t.TempDir(), "f"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			return fd
		},
	} {
		if changed, err := Write(open(), keys()); err == nil || changed {
			t.Errorf("%s: changed %v, error %v", name, changed, err)
		}
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	write(t, dir, keys())
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if write(t, dir, keys()) {
		t.Error("equal payload: changed is true")
	}
	for name, p := range map[string]Payload{"other content": payload(file("a", "b")),
		"other owner": {Files: keys().Files, DirMode: 0o755}} {
		if changed, err := tryWrite(t, dir, p); !errors.Is(err, unix.EROFS) || changed {
			t.Errorf("%s: changed %v, error %v", name, changed, err)
		}
	}
	check(t, dir, keys())
}

func TestNoDescriptorLeaks(t *testing.T) {
	// The garbage collector would close a leaked file, and hide the leak.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	forEachLayout(t, func(t *testing.T, layout Layout) {
		dir := newVolume(t, "size=64k,nr_inodes=64")
		write(t, dir, keys())
		before := count()
		big, bad, other := keys(), keys(), keys()
		big.Files[0].Data = make([]byte, 1<<20)
		bad.Files[0].Path = "../x"
		other.Files[3].UID = 1<<32 - 1
		for range 20 {
			for _, p := range []Payload{keys(), payload(file("a", "1")), big, bad, other, payload()} {
				p.Layout = layout
				tryWrite(t, dir, p)
			}
			data := dir
			if layout == Links {
				data = filepath.Join(dir, "..data")
			}
			if err := unix.Mkfifo(filepath.Join(data, "fifo"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if after := count(); after != before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
	})
}

func TestTooFewDescriptors(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	write(t, dir, keys())
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	p := payload(file(strings.Repeat("d/", 200)+"f", "deep"))
	low := unix.Rlimit{Cur: 100, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	changed, err := tryWrite(t, dir, p)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || changed {
		t.Errorf("changed %v, error %v", changed, err)
	}
	check(t, dir, keys())
	write(t, dir, p)
}

func TestGenerationNames(t *testing.T) {
	for range 1000 {
		if name := newGenerationName(); !isGeneration(name) || !generationForm.MatchString(name) {
			t.Errorf("%q is given but not taken", name)
		}
	}
	for _, name := range []string{"", "..", "..data", "..data_tmp", "..2026_11_23_10_00_00", "..2026_11_23_10_00_00.",
		"..2026_11_23_10_00_00.x", "..2026_11_23_10_00_00.1x",
		"..2026_11_23_10_00_00.-1", "..2026_11_23_10_00_00.12345678901", "..2026_13_23_10_00_00.1", "..2026_11_23_25_00_00.1",
		"..2026_11_23_10_00_00./../x",
		"../026_11_23_10_00_00.1", "..2026_11_23_10_00_00/1", "/etc", "../../../victim", "x..2026_11_23_10_00_00.1",
		".2026_11_23_10_00_00.1",
		"..2026_11_23_10_00_00.1\x00", "..2026_11_23_10_00_00.1/", "..2026_11_23_10_00_00.1\n", "..2026_11_23_10_00_00.٣"} {
		if isGeneration(name) {
			t.Errorf("%q passes as a generation", name)
		}
	}
	if !isGeneration("..2026_11_23_10_00_00.0") || !isGeneration("..2026_11_23_10_00_00.4294967295") {
		t.Error("a right name is refused")
	}
}

func TestWrittenBytesDoNotAliasThePayload(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	p := keys()
	data := bytes.Clone(p.Files[0].Data)
	write(t, dir, p)
	write(t, dir, p)
	if !bytes.Equal(data, p.Files[0].Data) {
		t.Error("Write changed the payload")
	}
}

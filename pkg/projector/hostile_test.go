// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// world is a volume that holds keys(), and what lies around it.
type world struct {
	t          *testing.T
	dir        string // the volume
	generation string // the name of its generation
	victim     string // a directory outside, with a file and a directory in it
}

func newWorld(t *testing.T) world {
	w := world{t: t, dir: newVolume(t, "")}
	w.victim = filepath.Join(filepath.Dir(filepath.Dir(w.dir)), "victim")
	w.mkdir(filepath.Join(w.victim, "d"))
	w.file(filepath.Join(w.victim, "precious"), "precious")
	w.file(filepath.Join(w.victim, "id_rsa"), "private") // what the volume has too
	w.file(filepath.Join(w.victim, "d", "precious"), "precious")
	write(t, w.dir, keys())
	generation, err := os.Readlink(w.in("..data"))
	w.must(err)
	w.generation = generation
	return w
}

func (w world) in(path string) string  { return filepath.Join(w.dir, path) }
func (w world) now(path string) string { return filepath.Join(w.dir, w.generation, path) }

func (w world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w world) mkdir(path string) { w.t.Helper(); w.must(os.MkdirAll(path, 0o755)) }
func (w world) file(path, data string) {
	w.t.Helper()
	w.must(os.WriteFile(path, []byte(data), 0o400))
	w.must(os.Lchown(path, 1000, 2000))
}
func (w world) link(target, path string) {
	w.t.Helper()
	w.must(os.Symlink(target, path))
	w.must(os.Lchown(path, 1000, 2000))
}
func (w world) remove(path string) { w.t.Helper(); w.must(os.RemoveAll(path)) }
func (w world) replace(path string, by func(path string)) {
	w.t.Helper()
	w.remove(path)
	by(path)
}
func (w world) node(path string, kind uint32, device uint64) {
	w.t.Helper()
	w.must(unix.Mknod(path, kind|0o400, int(device)))
	w.must(os.Lchown(path, 1000, 2000))
}

const zero = 1<<8 | 5 // /dev/zero

// TestHostileOrLeftOver puts into a volume what a killed writer leaves and what a container that got write access could plant
// (CVE-2017-1002102, and worse). Whatever it is: the next write, of the same payload or another, puts the volume right,
// does not hang, and touches nothing outside.
func TestHostileOrLeftOver(t *testing.T) {
	const old = "..2001_02_03_04_05_06.7"
	cases := map[string]func(w world){
		"nothing": func(world) {},

		// What a killed writer leaves.
		"a stale ..data_tmp to a generation":    func(w world) { w.link(w.generation, w.in("..data_tmp")) },
		"a stale ..data_tmp to nowhere":         func(w world) { w.link(old, w.in("..data_tmp")) },
		"an orphan generation, empty":           func(w world) { w.mkdir(w.in(old)) },
		"an orphan generation with content":     func(w world) { w.mkdir(w.in(old + "/a/b")); w.file(w.in(old+"/a/b/c"), "revoked") },
		"an orphan generation nobody may enter": func(w world) { w.mkdir(w.in(old)); w.must(os.Chmod(w.in(old), 0)) },
		"many orphans": func(w world) {
			for _, c := range "0123456789" {
				w.mkdir(w.in(old + string(c) + "/d"))
				w.file(w.in(old+string(c)+"/d/f"), "revoked")
			}
		},
		"no ..data, although a generation is there": func(w world) { w.remove(w.in("..data")) },
		"no visible link":         func(w world) { w.remove(w.in("id_rsa")) },
		"a visible link too many": func(w world) { w.link("..data/gone", w.in("gone")) },
		"an empty directory": func(w world) {
			for _, e := range w.list() {
				w.remove(w.in(e))
			}
		},

		// Wrong kinds in the place of the layout's names.
		"..data_tmp is a file":                         func(w world) { w.file(w.in("..data_tmp"), "x") },
		"..data_tmp is a directory with content":       func(w world) { w.mkdir(w.in("..data_tmp/d")); w.file(w.in("..data_tmp/d/f"), "x") },
		"..data_tmp is a link to the victim":           func(w world) { w.link(w.victim, w.in("..data_tmp")) },
		"..data_tmp is a FIFO":                         func(w world) { w.node(w.in("..data_tmp"), unix.S_IFIFO, 0) },
		"..data is a directory":                        func(w world) { w.replace(w.in("..data"), w.mkdir) },
		"..data is a directory with content":           func(w world) { w.replace(w.in("..data"), func(p string) { w.mkdir(p + "/a"); w.file(p+"/a/b", "x") }) },
		"..data is a copy of the generation":           func(w world) { w.remove(w.in("..data")); w.must(os.Rename(w.now(""), w.in("..data"))) },
		"..data is a file":                             func(w world) { w.replace(w.in("..data"), func(p string) { w.file(p, "x") }) },
		"..data is a FIFO":                             func(w world) { w.replace(w.in("..data"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"..data is another's":                          func(w world) { w.must(os.Lchown(w.in("..data"), 0, 0)) },
		"the generation is a file":                     func(w world) { w.replace(w.now(""), func(p string) { w.file(p, "x") }) },
		"the generation is a FIFO":                     func(w world) { w.replace(w.now(""), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"the generation has another owner":             func(w world) { w.must(os.Chown(w.now(""), 0, 0)) },
		"the generation has another mode":              func(w world) { w.must(os.Chmod(w.now(""), 0o777)) },
		"the generation has the sticky bit":            func(w world) { w.must(unix.Chmod(w.now(""), 0o1755)) },
		"other names that start with two dots":         func(w world) { w.file(w.in("...x"), "x"); w.mkdir(w.in("..x/y")); w.node(w.in("..y"), unix.S_IFIFO, 0) },
		"a directory whose name is that of a device":   func(w world) { w.node(w.in("..zero"), unix.S_IFCHR, zero) },
		"the root directory has another owner or mode": func(w world) { w.must(os.Chown(w.dir, 9, 9)); w.must(unix.Chmod(w.dir, 0o7777)) },

		// ..data leads elsewhere.
		"..data leads to a victim outside":            func(w world) { w.dataTo("../../victim") },
		"..data leads to a victim far outside":        func(w world) { w.dataTo("../../../../../../../.." + w.victim) },
		"..data leads to an absolute path":            func(w world) { w.dataTo(w.victim) },
		"..data leads out behind a right name":        func(w world) { w.dataTo(old + "/../../../victim") },
		"..data leads to a right name with a slash":   func(w world) { w.dataTo(w.generation + "/") },
		"..data leads to the directory itself":        func(w world) { w.dataTo(".") },
		"..data leads to the parent":                  func(w world) { w.dataTo("..") },
		"..data leads to ..data":                      func(w world) { w.dataTo("..data") },
		"..data leads to a visible name":              func(w world) { w.dataTo("id_rsa") },
		"..data leads to a name with a wrong form":    func(w world) { w.mkdir(w.in("..2001_x")); w.dataTo("..2001_x") },
		"..data leads nowhere":                        func(w world) { w.dataTo(old) },
		"..data leads to a generation that is a link": func(w world) { w.link(w.victim, w.in(old)); w.dataTo(old) },
		"..data leads to a link to the generation":    func(w world) { w.link(w.generation, w.in(old)); w.dataTo(old) },
		"..data leads to another, wrong generation":   func(w world) { w.mkdir(w.in(old)); w.file(w.in(old+"/id_rsa"), "mine"); w.dataTo(old) },

		// The visible names.
		"a visible name is a file":                     func(w world) { w.replace(w.in("id_rsa"), func(p string) { w.file(p, "private") }) },
		"a visible name is a directory":                func(w world) { w.replace(w.in("conf"), w.mkdir) },
		"a visible name is a directory with content":   func(w world) { w.replace(w.in("conf"), func(p string) { w.mkdir(p + "/d"); w.file(p+"/d/f", "x") }) },
		"a visible name is a FIFO":                     func(w world) { w.replace(w.in("id_rsa"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"a visible name leads to the victim":           func(w world) { w.replace(w.in("conf"), func(p string) { w.link(w.victim, p) }) },
		"a visible name leads to a file of the victim": func(w world) { w.replace(w.in("id_rsa"), func(p string) { w.link(w.victim+"/id_rsa", p) }) },
		"a visible name leads past ..data":             func(w world) { w.replace(w.in("id_rsa"), func(p string) { w.link(w.generation+"/id_rsa", p) }) },
		"a visible name leads to another key":          func(w world) { w.replace(w.in("id_rsa"), func(p string) { w.link("..data/id_rsa.pub", p) }) },
		"a visible name is another's":                  func(w world) { w.must(os.Lchown(w.in("id_rsa"), 0, 0)) },
		"a foreign directory with content":             func(w world) { w.mkdir(w.in("foreign/d")); w.file(w.in("foreign/d/f"), "x") },
		"a foreign link to the victim":                 func(w world) { w.link(w.victim, w.in("foreign")) },
		"a foreign directory with links to the victim": func(w world) {
			w.mkdir(w.in("foreign"))
			w.link(w.victim, w.in("foreign/v"))
			w.link("../../../victim", w.in("foreign/w"))
		},
		"a foreign FIFO, socket and device in the root": func(w world) {
			w.node(w.in("f"), unix.S_IFIFO, 0)
			w.node(w.in("s"), unix.S_IFSOCK, 0)
			w.node(w.in("c"), unix.S_IFCHR, zero)
		},

		// Inside the generation.
		"a file's bytes were changed":                func(w world) { w.replace(w.now("id_rsa"), func(p string) { w.file(p, "pwned!!") }) },
		"a file was removed":                         func(w world) { w.remove(w.now("conf/d/ten.conf")) },
		"a file was added":                           func(w world) { w.file(w.now("conf/d/more"), "x") },
		"a directory was added":                      func(w world) { w.mkdir(w.now("conf/more")) },
		"a file has another mode":                    func(w world) { w.must(os.Chmod(w.now("conf/main.conf"), 0o600)) },
		"a file has the setuid bit":                  func(w world) { w.must(unix.Chmod(w.now("conf/main.conf"), 0o4400)) },
		"a file has another owner":                   func(w world) { w.must(os.Chown(w.now("conf/main.conf"), 1001, 2000)) },
		"a nested directory has another owner":       func(w world) { w.must(os.Chown(w.now("conf/d"), 1001, 2000)) },
		"a nested directory has another mode":        func(w world) { w.must(os.Chmod(w.now("conf/d"), 0o777)) },
		"a file is a link to the same bytes outside": func(w world) { w.replace(w.now("id_rsa"), func(p string) { w.link(w.victim+"/id_rsa", p) }) },
		"a file is a link to the same bytes inside": func(w world) {
			w.file(w.now("copy"), "private")
			w.replace(w.now("id_rsa"), func(p string) { w.link("copy", p) })
		},
		"a directory is a link to the victim":          func(w world) { w.replace(w.now("conf/d"), func(p string) { w.link(w.victim, p) }) },
		"a directory is a link to its own copy":        func(w world) { w.must(os.Rename(w.now("conf"), w.in("conf2"))); w.link("../conf2", w.now("conf")) },
		"a file is a FIFO":                             func(w world) { w.replace(w.now("id_rsa"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"a nested file is a FIFO":                      func(w world) { w.replace(w.now("conf/d/ten.conf"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"a directory is a FIFO":                        func(w world) { w.replace(w.now("conf/d"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"a FIFO was added":                             func(w world) { w.node(w.now("fifo"), unix.S_IFIFO, 0) },
		"a file is a socket":                           func(w world) { w.replace(w.now("id_rsa"), func(p string) { w.node(p, unix.S_IFSOCK, 0) }) },
		"a file is a device without an end":            func(w world) { w.replace(w.now("id_rsa"), func(p string) { w.node(p, unix.S_IFCHR, zero) }) },
		"a file is a directory":                        func(w world) { w.replace(w.now("id_rsa"), w.mkdir) },
		"a directory is a file":                        func(w world) { w.replace(w.now("conf"), func(p string) { w.file(p, "x") }) },
		"a file has a second name in the volume":       func(w world) { w.must(os.Link(w.now("id_rsa"), w.in("second"))) },
		"a file has a second name in an orphan":        func(w world) { w.mkdir(w.in(old)); w.must(os.Link(w.now("id_rsa"), w.in(old+"/second"))) },
		"a file has a second name in place of another": func(w world) { w.remove(w.now("id_rsa.pub")); w.must(os.Link(w.now("id_rsa"), w.now("id_rsa.pub"))) },
	}
	other := payload(file("id_rsa", "new private"), file("conf/d", "now a file"), file("foreign", "f"))
	for name, prepare := range cases {
		for which, p := range map[string]Payload{"the same payload": keys(), "another payload": other, "nothing": payload()} {
			t.Run(name+", then "+which, func(t *testing.T) {
				testkit.NothingLeft(t)
				w := newWorld(t)
				prepare(w)
				before := snapshot(t, w.victim)
				within(t, 10*time.Second, func() {
					if _, err := tryWrite(t, w.dir, p); err != nil {
						t.Errorf("write: %v", err)
					}
				})
				sameSnapshot(t, "the victim", before, snapshot(t, w.victim))
				check(t, w.dir, p)
				if write(t, w.dir, p) {
					t.Error("once more: changed is true")
				}
			})
		}
	}
}

func (w world) dataTo(target string) {
	w.t.Helper()
	w.replace(w.in("..data"), func(p string) { w.link(target, p) })
}

func (w world) list() (names []string) {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	w.must(err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// What looks like a file of the payload to stat and read, and is none, is replaced.
func TestLooksTheSame(t *testing.T) {
	for name, plant := range map[string]func(w world){
		"an empty file is a FIFO":              func(w world) { w.replace(w.now("empty"), func(p string) { w.node(p, unix.S_IFIFO, 0) }) },
		"an empty file is a socket":            func(w world) { w.replace(w.now("empty"), func(p string) { w.node(p, unix.S_IFSOCK, 0) }) },
		"an empty file is a device":            func(w world) { w.replace(w.now("empty"), func(p string) { w.node(p, unix.S_IFCHR, zero) }) },
		"an empty file is a link to another":   func(w world) { w.replace(w.now("empty"), func(p string) { w.link("empty2", p) }) },
		"two files with equal bytes are one":   func(w world) { w.remove(w.now("a")); w.must(os.Link(w.now("b"), w.now("a"))) },
		"a file has a second name out of here": func(w world) { w.must(os.Link(w.now("a"), filepath.Join(filepath.Dir(w.dir), "second"))) },
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			w := newWorld(t)
			// The volume is a directory of the mount, so that there is an outside on the same file system.
			w.dir = w.in("inner/volume")
			w.mkdir(w.dir)
			p := payload(file("empty", ""), file("empty2", ""), file("a", "equal"), file("b", "equal"))
			write(t, w.dir, p)
			generation, err := os.Readlink(w.in("..data"))
			w.must(err)
			w.generation = generation
			plant(w)
			within(t, 10*time.Second, func() {
				if !write(t, w.dir, p) {
					t.Error("changed is false")
				}
			})
			for _, f := range p.Files {
				var st unix.Stat_t
				w.must(unix.Stat(w.in(f.Path), &st))
				if st.Nlink != 1 {
					t.Errorf("%s has %d names", f.Path, st.Nlink)
				}
			}
		})
	}
}

// A file is never written in place.
func TestReaderKeepsTheOldBytes(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "")
	write(t, dir, keys())
	held, err := os.Open(filepath.Join(dir, "id_rsa"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	p := keys()
	p.Files[0].Data = []byte("rotated")
	write(t, dir, p)
	b := make([]byte, 100)
	if n, _ := held.Read(b); string(b[:n]) != "private" {
		t.Errorf("a reader of the old version reads %q", b[:n])
	}
}

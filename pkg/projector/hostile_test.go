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

// harness is a volume with keys(), and a directory outside of it.
type harness struct {
	t          *testing.T
	dir        string // the volume
	generation string // the name of its generation; empty unless the layout is Links
	victim     string // a directory outside, with a file and a directory in it
}

func newHarness(t *testing.T, layout Layout) harness {
	testkit.NothingLeft(t)
	h := harness{t: t, dir: newVolume(t, "")}
	h.victim = filepath.Join(filepath.Dir(filepath.Dir(h.dir)), "victim")
	h.mkdir(filepath.Join(h.victim, "d"))
	h.file(filepath.Join(h.victim, "precious"), "precious")
	h.file(filepath.Join(h.victim, "id_rsa"), "private") // The volume has this file, too.
	h.file(filepath.Join(h.victim, "d", "precious"), "precious")
	return h.holding(keys(), layout)
}

// holding writes a payload into the volume.
func (h harness) holding(p Payload, layout Layout) harness {
	h.t.Helper()
	p.Layout = layout
	write(h.t, h.dir, p)
	h.generation = ""
	if layout == Links {
		generation, err := os.Readlink(h.in("..data"))
		h.must(err)
		h.generation = generation
	}
	return h
}

func (h harness) in(path string) string  { return filepath.Join(h.dir, path) }
func (h harness) now(path string) string { return filepath.Join(h.dir, h.generation, path) }

func (h harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h harness) mkdir(path string) { h.t.Helper(); h.must(os.MkdirAll(path, 0o755)) }
func (h harness) file(path, data string) {
	h.t.Helper()
	h.must(os.WriteFile(path, []byte(data), 0o400))
	h.must(os.Lchown(path, 1000, 2000))
}
func (h harness) link(target, path string) {
	h.t.Helper()
	h.must(os.Symlink(target, path))
	h.must(os.Lchown(path, 1000, 2000))
}
func (h harness) remove(path string) { h.t.Helper(); h.must(os.RemoveAll(path)) }
func (h harness) replace(path string, by func(path string)) {
	h.t.Helper()
	h.remove(path)
	by(path)
}
func (h harness) node(path string, kind uint32, device uint64) {
	h.t.Helper()
	h.must(unix.Mknod(path, kind|0o400, int(device)))
	h.must(os.Lchown(path, 1000, 2000))
}

const zero = 1<<8 | 5 // /dev/zero

const old = "..2001_02_03_04_05_06.7" // a generation with another time

// hostileNames are the files that a killed writer leaves, or that a container could plant, in the root directory of a
// volume with the layout Links.
func hostileNames() map[string]func(harness) {
	return map[string]func(h harness){
		"nothing": func(harness) {},

		// A killed writer leaves these.
		"a stale ..data_tmp to a generation": func(h harness) { h.link(h.generation, h.in("..data_tmp")) },
		"a stale ..data_tmp to nowhere":      func(h harness) { h.link(old, h.in("..data_tmp")) },
		"an orphan generation, empty":        func(h harness) { h.mkdir(h.in(old)) },
		"an orphan generation with content": func(h harness) {
			h.mkdir(h.in(old + "/a/b"))
			h.file(h.in(old+"/a/b/c"), "revoked")
		},
		"an orphan generation nobody may enter": func(h harness) { h.mkdir(h.in(old)); h.must(os.Chmod(h.in(old), 0)) },
		"many orphans": func(h harness) {
			for _, c := range "0123456789" {
				h.mkdir(h.in(old + string(c) + "/d"))
				h.file(h.in(old+string(c)+"/d/f"), "revoked")
			}
		},
		"no ..data, although a generation is there": func(h harness) { h.remove(h.in("..data")) },
		"no visible link":         func(h harness) { h.remove(h.in("id_rsa")) },
		"a visible link too many": func(h harness) { h.link("..data/gone", h.in("gone")) },
		"an empty directory": func(h harness) {
			for _, e := range h.list() {
				h.remove(h.in(e))
			}
		},

		// These have the layout's names and the wrong type.
		"..data_tmp is a file": func(h harness) { h.file(h.in("..data_tmp"), "x") },
		"..data_tmp is a directory with content": func(h harness) {
			h.mkdir(h.in("..data_tmp/d"))
			h.file(h.in("..data_tmp/d/f"), "x")
		},
		"..data_tmp is a link to the victim": func(h harness) { h.link(h.victim, h.in("..data_tmp")) },
		"..data_tmp is a FIFO":               func(h harness) { h.node(h.in("..data_tmp"), unix.S_IFIFO, 0) },
		"..data is a directory":              func(h harness) { h.replace(h.in("..data"), h.mkdir) },
		"..data is a directory with content": func(h harness) {
			h.replace(h.in("..data"), func(p string) { h.mkdir(p + "/a"); h.file(p+"/a/b", "x") })
		},
		"..data is a copy of the generation": func(h harness) {
			h.remove(h.in("..data"))
			h.must(os.Rename(h.now(""), h.in("..data")))
		},
		"..data is a file": func(h harness) { h.replace(h.in("..data"), func(p string) { h.file(p, "x") }) },
		"..data is a FIFO": func(h harness) {
			h.replace(h.in("..data"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"..data is another's":      func(h harness) { h.must(os.Lchown(h.in("..data"), 0, 0)) },
		"the generation is a file": func(h harness) { h.replace(h.now(""), func(p string) { h.file(p, "x") }) },
		"the generation is a FIFO": func(h harness) {
			h.replace(h.now(""), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"the generation has another owner":  func(h harness) { h.must(os.Chown(h.now(""), 0, 0)) },
		"the generation has another mode":   func(h harness) { h.must(os.Chmod(h.now(""), 0o777)) },
		"the generation has the sticky bit": func(h harness) { h.must(unix.Chmod(h.now(""), 0o1755)) },
		"other names that start with two dots": func(h harness) {
			h.file(h.in("...x"), "x")
			h.mkdir(h.in("..x/y"))
			h.node(h.in("..y"), unix.S_IFIFO, 0)
		},
		"a directory whose name is that of a device": func(h harness) { h.node(h.in("..zero"), unix.S_IFCHR, zero) },
		"the root directory has another owner or mode": func(h harness) {
			h.must(os.Chown(h.dir, 9, 9))
			h.must(unix.Chmod(h.dir, 0o7777))
		},

		// Here ..data leads to another directory.
		"..data leads to a victim outside":            func(h harness) { h.dataTo("../../victim") },
		"..data leads to a victim far outside":        func(h harness) { h.dataTo("../../../../../../../.." + h.victim) },
		"..data leads to an absolute path":            func(h harness) { h.dataTo(h.victim) },
		"..data leads out behind a right name":        func(h harness) { h.dataTo(old + "/../../../victim") },
		"..data leads to a right name with a slash":   func(h harness) { h.dataTo(h.generation + "/") },
		"..data leads to the directory itself":        func(h harness) { h.dataTo(".") },
		"..data leads to the parent":                  func(h harness) { h.dataTo("..") },
		"..data leads to ..data":                      func(h harness) { h.dataTo("..data") },
		"..data leads to a visible name":              func(h harness) { h.dataTo("id_rsa") },
		"..data leads to a name with a wrong form":    func(h harness) { h.mkdir(h.in("..2001_x")); h.dataTo("..2001_x") },
		"..data leads nowhere":                        func(h harness) { h.dataTo(old) },
		"..data leads to a generation that is a link": func(h harness) { h.link(h.victim, h.in(old)); h.dataTo(old) },
		"..data leads to a link to the generation":    func(h harness) { h.link(h.generation, h.in(old)); h.dataTo(old) },
		"..data leads to another, wrong generation": func(h harness) {
			h.mkdir(h.in(old))
			h.file(h.in(old+"/id_rsa"), "mine")
			h.dataTo(old)
		},

		// These have visible names.
		"a visible name is a file": func(h harness) {
			h.replace(h.in("id_rsa"), func(p string) { h.file(p, "private") })
		},
		"a visible name is a directory": func(h harness) { h.replace(h.in("conf"), h.mkdir) },
		"a visible name is a directory with content": func(h harness) {
			h.replace(h.in("conf"), func(p string) { h.mkdir(p + "/d"); h.file(p+"/d/f", "x") })
		},
		"a visible name is a FIFO": func(h harness) {
			h.replace(h.in("id_rsa"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"a visible name leads to the victim": func(h harness) {
			h.replace(h.in("conf"), func(p string) { h.link(h.victim, p) })
		},
		"a visible name leads to a file of the victim": func(h harness) {
			h.replace(h.in("id_rsa"), func(p string) { h.link(h.victim+"/id_rsa", p) })
		},
		"a visible name leads past ..data": func(h harness) {
			h.replace(h.in("id_rsa"), func(p string) { h.link(h.generation+"/id_rsa", p) })
		},
		"a visible name leads to another key": func(h harness) {
			h.replace(h.in("id_rsa"), func(p string) { h.link("..data/id_rsa.pub", p) })
		},
		"a visible name is another's":      func(h harness) { h.must(os.Lchown(h.in("id_rsa"), 0, 0)) },
		"a foreign directory with content": func(h harness) { h.mkdir(h.in("foreign/d")); h.file(h.in("foreign/d/f"), "x") },
		"a foreign link to the victim":     func(h harness) { h.link(h.victim, h.in("foreign")) },
		"a foreign directory with links to the victim": func(h harness) {
			h.mkdir(h.in("foreign"))
			h.link(h.victim, h.in("foreign/v"))
			h.link("../../../victim", h.in("foreign/w"))
		},
		"a foreign FIFO, socket and device in the root": func(h harness) {
			h.node(h.in("f"), unix.S_IFIFO, 0)
			h.node(h.in("s"), unix.S_IFSOCK, 0)
			h.node(h.in("c"), unix.S_IFCHR, zero)
		},
	}
}

// hostileFiles are the changes that a container could make to the files of a volume of any layout.
func hostileFiles() map[string]func(harness) {
	return map[string]func(h harness){
		"a file's bytes were changed": func(h harness) {
			h.replace(h.now("id_rsa"), func(p string) { h.file(p, "pwned!!") })
		},
		"a file was removed":        func(h harness) { h.remove(h.now("conf/d/ten.conf")) },
		"a file was added":          func(h harness) { h.file(h.now("conf/d/more"), "x") },
		"a directory was added":     func(h harness) { h.mkdir(h.now("conf/more")) },
		"a file has another mode":   func(h harness) { h.must(os.Chmod(h.now("conf/main.conf"), 0o600)) },
		"a file has the setuid bit": func(h harness) { h.must(unix.Chmod(h.now("conf/main.conf"), 0o4400)) },
		"a file has another owner": func(h harness) {
			h.must(os.Chown(h.now("conf/main.conf"), 1001, 2000))
		},
		"a nested directory has another owner": func(h harness) { h.must(os.Chown(h.now("conf/d"), 1001, 2000)) },
		"a nested directory has another mode":  func(h harness) { h.must(os.Chmod(h.now("conf/d"), 0o777)) },
		"a file is a link to the same bytes outside": func(h harness) {
			h.replace(h.now("id_rsa"), func(p string) { h.link(h.victim+"/id_rsa", p) })
		},
		"a file is a link to the same bytes inside": func(h harness) {
			h.file(h.now("copy"), "private")
			h.replace(h.now("id_rsa"), func(p string) { h.link("copy", p) })
		},
		"a directory is a link to the victim": func(h harness) {
			h.replace(h.now("conf/d"), func(p string) { h.link(h.victim, p) })
		},
		"a directory is a link to its own copy": func(h harness) {
			h.must(os.Rename(h.now("conf"), h.in("conf2")))
			h.link("../conf2", h.now("conf"))
		},
		"a file is a FIFO": func(h harness) {
			h.replace(h.now("id_rsa"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"a nested file is a FIFO": func(h harness) {
			h.replace(h.now("conf/d/ten.conf"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"a directory is a FIFO": func(h harness) {
			h.replace(h.now("conf/d"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"a FIFO was added": func(h harness) { h.node(h.now("fifo"), unix.S_IFIFO, 0) },
		"a file is a socket": func(h harness) {
			h.replace(h.now("id_rsa"), func(p string) { h.node(p, unix.S_IFSOCK, 0) })
		},
		"a file is a device without an end": func(h harness) {
			h.replace(h.now("id_rsa"), func(p string) { h.node(p, unix.S_IFCHR, zero) })
		},
		"a file is a directory": func(h harness) { h.replace(h.now("id_rsa"), h.mkdir) },
		"a directory is a file": func(h harness) {
			h.replace(h.now("conf"), func(p string) { h.file(p, "x") })
		},
		"a file has a second name in the volume": func(h harness) { h.must(os.Link(h.now("id_rsa"), h.in("second"))) },
		"a file has a second name in an orphan": func(h harness) {
			h.mkdir(h.in(old))
			h.must(os.Link(h.now("id_rsa"), h.in(old+"/second")))
		},
		// The layouts files and in-place use these names.
		"..pending leads to the victim": func(h harness) { h.link(h.victim, h.in(pendingDir)) },
		"..pending is a file":           func(h harness) { h.file(h.in(pendingDir), "x") },
		"..pending is a FIFO":           func(h harness) { h.node(h.in(pendingDir), unix.S_IFIFO, 0) },
		"..pending has links to the victim": func(h harness) {
			h.mkdir(h.in(pendingDir + "/conf"))
			h.link(h.victim, h.in(pendingDir+"/conf/d"))
			h.link(h.victim+"/id_rsa", h.in(pendingDir+"/id_rsa"))
		},
		"..pending has a FIFO and a device": func(h harness) {
			h.mkdir(h.in(pendingDir))
			h.node(h.in(pendingDir+"/id_rsa"), unix.S_IFIFO, 0)
			h.node(h.in(pendingDir+"/id_rsa.pub"), unix.S_IFCHR, zero)
		},
		"..pending has a directory for a file, and a file for a directory": func(h harness) {
			h.mkdir(h.in(pendingDir + "/id_rsa/d"))
			h.file(h.in(pendingDir+"/conf"), "x")
		},
		"..pending has what a visible link names": func(h harness) {
			h.mkdir(h.in(pendingDir))
			h.replace(h.in("id_rsa"), func(p string) { h.link(h.victim+"/id_rsa", p) })
			h.file(h.in(pendingDir+"/id_rsa"), "pwned!!")
		},
		"a file has a second name in place of another": func(h harness) {
			h.remove(h.now("id_rsa.pub"))
			h.must(os.Link(h.now("id_rsa"), h.now("id_rsa.pub")))
		},
	}
}

// TestHostileOrLeftOver puts into a volume what a killed writer leaves, and what a container with write access could
// plant (CVE-2017-1002102, and worse). The next write, of the same payload or another, must repair the volume, must not
// hang, and must touch nothing outside.
func TestHostileOrLeftOver(t *testing.T) {
	other := payload(file("id_rsa", "new private"), file("conf/d", "now a file"), file("foreign", "f"))
	forEachLayout(t, func(t *testing.T, layout Layout) {
		for which, p := range map[string]Payload{"the same payload": keys(), "another payload": other, "nothing": payload()} {
			p.Layout = layout
			for name, prepare := range hostileNames() {
				t.Run(name+", then "+which, func(t *testing.T) { putRight(t, newHarness(t, Links), prepare, p) })
			}
			for name, prepare := range hostileFiles() {
				t.Run(name+", then "+which, func(t *testing.T) { putRight(t, newHarness(t, layout), prepare, p) })
			}
		}
	})
}

func putRight(t *testing.T, h harness, prepare func(harness), p Payload) {
	prepare(h)
	before := snapshot(t, h.victim)
	within(t, 10*time.Second, func() {
		if _, err := tryWrite(t, h.dir, p); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	sameSnapshot(t, "the victim", before, snapshot(t, h.victim))
	check(t, h.dir, p)
	if write(t, h.dir, p) {
		t.Error("once more: changed is true")
	}
}

func (h harness) dataTo(target string) {
	h.t.Helper()
	h.replace(h.in("..data"), func(p string) { h.link(target, p) })
}

func (h harness) list() (names []string) {
	h.t.Helper()
	entries, err := os.ReadDir(h.dir)
	h.must(err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A file that stat and read take for a file of the payload, but that is none, is replaced.
func TestLooksTheSame(t *testing.T) {
	for name, plant := range map[string]func(h harness){
		"an empty file is a FIFO": func(h harness) {
			h.replace(h.now("empty"), func(p string) { h.node(p, unix.S_IFIFO, 0) })
		},
		"an empty file is a socket": func(h harness) {
			h.replace(h.now("empty"), func(p string) { h.node(p, unix.S_IFSOCK, 0) })
		},
		"an empty file is a device": func(h harness) {
			h.replace(h.now("empty"), func(p string) { h.node(p, unix.S_IFCHR, zero) })
		},
		"an empty file is a link to another": func(h harness) {
			h.replace(h.now("empty"), func(p string) { h.link("empty2", p) })
		},
		"two files with equal bytes are one": func(h harness) {
			h.remove(h.now("a"))
			h.must(os.Link(h.now("b"), h.now("a")))
		},
		"a file has a second name out of here": func(h harness) {
			h.must(os.Link(h.now("a"), filepath.Join(filepath.Dir(h.dir), "second")))
		},
	} {
		forEachLayout(t, func(t *testing.T, layout Layout) {
			t.Run(name, func(t *testing.T) { isWrittenAnew(t, layout, plant) })
		})
	}
}

func isWrittenAnew(t *testing.T, layout Layout, plant func(harness)) {
	h := newHarness(t, layout)
	// The volume is a directory of the mount, so that the same file system has files outside of the volume.
	h.dir = h.in("inner/volume")
	h.mkdir(h.dir)
	p := payload(file("empty", ""), file("empty2", ""), file("a", "equal"), file("b", "equal"))
	p.Layout = layout
	h = h.holding(p, layout)
	plant(h)
	within(t, 10*time.Second, func() {
		if !write(t, h.dir, p) {
			t.Error("changed is false")
		}
	})
	for _, f := range p.Files {
		var st unix.Stat_t
		h.must(unix.Stat(h.in(f.Path), &st))
		if st.Nlink != 1 {
			t.Errorf("%s has %d names", f.Path, st.Nlink)
		}
	}
}

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

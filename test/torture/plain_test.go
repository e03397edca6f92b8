// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// part is a reader's view of something that changes at once: a file, or with the layout links a whole volume.
type part struct {
	key     string
	version int
	// mixed means that the file has bytes of several versions, and begins with version. With the layout in-place, a file
	// may be mixed until its write has ended.
	mixed bool
	size  int64
	// inode is the file's inode with the layout in-place. It is 0 if the inode may change, or if the kernel does not
	// report the time at which the file system was created. volume is that time: it differs between successive file
	// systems at a target.
	inode  uint64
	volume int64
}

// after returns an error if a part can't follow the part before, which was not mixed.
func (p part) after(before part) error {
	switch {
	case p.volume == before.volume && before.inode != 0 && p.inode != before.inode:
		return fmt.Errorf("inode %d after inode %d", p.inode, before.inode)
	case p.mixed && p.size < shortest(p.key, before.version, p.version):
		return fmt.Errorf("%d bytes, which begin with version %d: shorter than all versions since %d",
			p.size, p.version, before.version)
	case !p.mixed && p.version < before.version:
		return fmt.Errorf("version %d after version %d", p.version, before.version)
	}
	return nil
}

// readPlain reads the files of a volume of plain files.
func readPlain(root int, want owned, made unix.StatxTimestamp) (map[string]part, error) {
	most, always := want.files(2), want.files(0) // the files of any version, and those of all versions
	parts := map[string]part{}
	for _, name := range most {
		fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) && !slices.Contains(always, name) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("file %s: %w", name, err)
		}
		st, text, err := readFile(fd, name, want)
		if err != nil {
			return nil, err
		}
		p := part{key: keyOf(name), size: st.Size}
		p.version, err = parse(p.key, text)
		if want.layout == attributes.LayoutInPlace {
			p.mixed, err = err != nil, nil
			if slices.Contains(always, name) && made.Sec > 0 {
				p.inode, p.volume = st.Ino, made.Sec*1e9+int64(made.Nsec)
			}
		}
		if err != nil {
			return nil, err
		}
		parts[name] = p
	}
	return parts, nil
}

// shown counts the files of a volume: the complete ones, by version, and those that mix versions.
type shown struct{ old, next, mixed int }

// plainKill is a kill during a change of three plain files.
type plainKill struct {
	point, action string
	// dead is a reader's view before the next process starts, and after is the view after that process has recovered.
	dead, after shown
}

// killsInPlainFiles kills the driver at each step of a change of plain files. The API server is not available until the
// next process has completed the change. A change that was not pending is not completed.
func killsInPlainFiles(t *testing.T, c *cluster) {
	all := []plainKill{
		{"projector-staged", "kill", shown{old: 3}, shown{old: 3}},
		{"projector-pending", "kill", shown{old: 3}, shown{next: 3}},
		{"projector-file-taken", "kill 1", shown{old: 2, next: 1}, shown{next: 3}},
		{"projector-half-overwritten", "kill 1", shown{old: 1, next: 1, mixed: 1}, shown{next: 3}},
	}
	for layout, kills := range map[attributes.Layout][]plainKill{
		attributes.LayoutFiles: all[:3], attributes.LayoutInPlace: all,
	} {
		h := newHarness(t, c)
		version := 99
		h.setVersion("a", version)
		m := h.want(anOwner(form{byName, layout}), "a")
		h.settle("publish a volume")
		readers := startReaders(t, h.driver.Root, time.Millisecond)
		for _, kill := range kills {
			h.killInPlainFiles(m, kill, version)
			version += 162
		}
		readers.stop()
		h.drop()
		h.settle("unpublish the volume")
	}
	reliability.Shown(t, "F-53",
		fmt.Sprintf("%d kills, each during an outage of the API server", len(all[:3])+len(all)))
}

// killInPlainFiles kills the driver during the change from a version of object a to another. Both versions have three
// files. Each file of the later version is shorter if the version is one of 99, 99+162, 99+2*162 and so on.
func (h *harness) killInPlainFiles(m mounted, kill plainKill, version int) {
	h.t.Helper()
	what := fmt.Sprintf("layout %s, killed at %s", m.owned.layout, kill.point)
	h.setVersion("a", version)
	h.converge(what + ": before")
	h.arm(kill.point, kill.action)
	h.setVersion("a", version+72)
	testkit.Eventually(h.t, patience, what+": the death of the driver", h.driver.Dead)
	h.cluster.proxy.Cut()
	if got := h.count(m, version); got != kill.dead {
		h.t.Errorf("%s: before the restart %+v, want %+v", what, got, kill.dead)
	}
	h.restart(h.driver.Bury)
	testkit.Eventually(h.t, patience, fmt.Sprintf("%s: %+v after the restart", what, kill.after), func() bool {
		return h.count(m, version) == kill.after
	})
	h.cluster.proxy.Heal()
	h.converge(what + ": the API server is back")
	h.check(what)
}

// setVersion is set with a version other than the next one.
func (h *harness) setVersion(object string, n int) {
	h.t.Helper()
	h.versions[object] = n - 1
	h.set(object)
}

// count counts the files of a volume with version old, and those with a later version.
func (h *harness) count(m mounted, old int) (n shown) {
	h.t.Helper()
	parts, err := readParts(h.target(m))
	h.must(err)
	for _, p := range parts {
		switch {
		case p.mixed:
			n.mixed++
		case p.version == old:
			n.old++
		default:
			n.next++
		}
	}
	return n
}

// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) { testkit.RunInMountNamespace(m) }

func pointer(n uint32) *uint32 { return &n }

// full returns a volume with a different value in every field.
func full() Volume {
	return Volume{
		Version: newestVersion, VolumeID: "csi-1", TargetPath: "/pods/uid/volumes/kubernetes.io~csi/ssh/mount",
		Pod: Pod{Namespace: "team", Name: "web-0", UID: "0b5c"},
		Spec: Spec{
			Volume: "ssh-keys",
			Sources: []Source{{
				Kind: "Secret", Name: "ssh-keys", Optional: true, Mode: 0o400,
				Items: []Item{
					{Key: "key", Container: "c", Divisor: "1Mi", Path: "dir/<path> & \"more\"", Mode: pointer(0o444), UID: pointer(3)},
					{Key: "k2", Path: "p2"},
				},
			}, {}},
			UID: pointer(1000), GID: pointer(2000), Mode: pointer(0o600), DefaultUser: pointer(71), DirMode: 0o755,
			Refresh: "watch", Layout: "files",
			Paths: map[string]Permissions{
				"dir/a:b\n\\": {UID: pointer(4), GID: pointer(5), Mode: pointer(0)}, "p2": {},
			},
			Templates:   map[string]string{"t/<&>": "$(p2)\n"},
			MountPoints: []string{"data", "run/x"}, SubPaths: []string{"conf"},
		},
		MountGroup: pointer(5000), User: pointer(70), Allocatable: map[string]string{"cpu": "4", "memory": "8Gi"},
		Size: 12, Device: 1<<64 - 1, FSID: 1<<63 + 1,
	}
}

// minimal returns a volume with only the required fields.
func minimal(id string) Volume {
	return Volume{Version: oldestVersion, VolumeID: id, TargetPath: "/t", Pod: Pod{UID: "u"}}
}

func newStore(t testing.TB) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func save(t testing.TB, s *Store, v Volume) {
	t.Helper()
	if err := s.Save(v); err != nil {
		t.Fatal(err)
	}
}

// load loads all records, and fails t if there is a bad file.
func load(t testing.TB, s *Store) map[string]Volume {
	t.Helper()
	volumes, bad, err := s.Load()
	if err != nil || bad != nil {
		t.Fatalf("bad %v, error %v", bad, err)
	}
	byID := map[string]Volume{}
	for _, v := range volumes {
		if _, twice := byID[v.VolumeID]; twice {
			t.Errorf("volume %q is there twice", v.VolumeID)
		}
		byID[v.VolumeID] = v
	}
	return byID
}

// tree lists the files below dir, with their types and modes.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprintf("%06o %d:%d %s", st.Mode, st.Uid, st.Gid, rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

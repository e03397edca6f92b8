// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

const (
	suffix    = ".json"
	tmpSuffix = ".tmp"
	// badDir is the directory to which Load moves files that it can't read, so that an administrator can inspect them.
	badDir = "bad"
	// maxSize bounds the size of a file that Load reads. The description of a volume comes from a pod, which has at most
	// 1.5 MiB (etcd's limit), and JSON escapes can make six bytes of one.
	maxSize = 16 << 20
)

// Store is a directory of records. Calls for different volumes may run at the same time. The caller serialises the
// calls for one volume.
type Store struct {
	dir string
}

// Open creates dir if it does not exist, sets its mode to 0700, and returns its store. Kubelet creates the directory of
// a hostPath volume with mode 0755.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of volume records: %w", err)
	}
	// The code below uses the opened directory, because somebody may replace the path by a link.
	d, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory of volume records (it must not be a symbolic link): %w", err)
	}
	defer d.Close()
	// Kubelet may have made the directory, with mode 0755.
	if st, err := d.Stat(); err != nil || st.Mode().Perm() != 0o700 {
		if err := errors.Join(err, d.Chmod(0o700)); err != nil {
			return nil, fmt.Errorf("set mode of directory of volume records: %w", err)
		}
	}
	return &Store{dir: dir}, nil
}

// Save writes the record of v.VolumeID. It replaces an earlier record as a whole or not at all.
func (s *Store) Save(v Volume) error {
	b, err := encode(v)
	if err != nil {
		return fmt.Errorf("encode record of volume %s: %w", v.VolumeID, err)
	}
	path := s.path(v.VolumeID)
	// The temporary name is fixed, so that the next writer replaces the file that a killed writer left.
	if err := write(path+tmpSuffix, b); err != nil {
		return fmt.Errorf("write record of volume %s: %w", v.VolumeID, err)
	}
	if err := failpoint.Error("record-tmp-written"); err != nil {
		return errors.Join(err, remove(path+tmpSuffix))
	}
	if err := unix.Rename(path+tmpSuffix, path); err != nil {
		return errors.Join(fmt.Errorf("write record of volume %s: %w", v.VolumeID, err), remove(path+tmpSuffix))
	}
	return nil
}

// encode returns the file of a record. Unlike json.Marshal, it does not write <, > and & as six bytes each.
func encode(v Volume) ([]byte, error) {
	v.Version = v.version()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// MaxLength returns the length of the record's file. It assumes the largest number of digits for Size, Device and FSID,
// which become known last.
func MaxLength(v Volume) int {
	v.Size, v.Device, v.FSID = math.MaxInt64, math.MaxUint64, math.MaxUint64
	b, _ := encode(v) // A record that can't be encoded can't be saved either.
	return len(b)
}

// Check returns an error if no record can be written now. It writes a file without a name, which leaves nothing even if
// the process is killed. On a file system without such files (O_TMPFILE), Check returns no error.
func (s *Store) Check() error {
	f, err := os.OpenFile(s.dir, os.O_WRONLY|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write volume records: %w", err)
	}
	return nil
}

// write creates a file. If write fails, it leaves no file. It does not sync: /run has no disk, and a power cut that
// destroys a record also destroys the tmpfs that the record describes.
func write(path string, b []byte) error {
	f, err := create(path)
	if errors.Is(err, fs.ErrExist) { // A killed writer left the file.
		if err := remove(path); err != nil {
			return err
		}
		f, err = create(path)
	}
	if err != nil {
		return err
	}
	failpoint.Hit("record-tmp-made")
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, remove(path))
	}
	return nil
}

// create creates a file. O_EXCL ensures that the file is new and has this mode. os.OpenFile would make five more system
// calls, for Go's network poller.
func create(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Remove removes the record of a volume. A missing record is no error.
func (s *Store) Remove(volumeID string) error {
	if err := failpoint.Error("record-remove"); err != nil {
		return err
	}
	if err := remove(s.path(volumeID)); err != nil {
		return fmt.Errorf("remove record of volume %s: %w", volumeID, err)
	}
	failpoint.Hit("record-removed")
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Load reads all records. A bad file does not prevent Load from reading the others: bad has an error with the name of
// the file and the reason. Load moves a corrupt record (ErrCorrupt) aside. A record of another version (ErrVersion)
// stays for the driver that wrote it. err means that the directory can't be read at all.
func (s *Store) Load() (volumes []Volume, bad []error, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list volume records: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasSuffix(name, suffix+tmpSuffix):
			// The writer was killed before the rename.
			if err := remove(filepath.Join(s.dir, name)); err != nil {
				bad = append(bad, fmt.Errorf("remove unfinished record: %w", err))
			}
		case !strings.HasSuffix(name, suffix):
			// The name is badDir, or that of a file that this driver did not make.
		default:
			v, err := s.load(name)
			switch {
			case err == nil:
				volumes = append(volumes, v)
			case errors.Is(err, ErrCorrupt):
				bad = append(bad, errors.Join(fmt.Errorf("record %s: %w", name, err), s.moveAside(name)))
			default:
				bad = append(bad, fmt.Errorf("record %s: %w", name, err))
			}
		}
	}
	return volumes, bad, nil
}

func (s *Store) load(name string) (Volume, error) {
	// With O_NONBLOCK, a FIFO with the name of a record does not block the start.
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a symbolic link, a socket
		return Volume{}, fmt.Errorf("%w: not a regular file", ErrCorrupt)
	}
	if err != nil {
		// The reason of the failure need not be the file. For example, there may be too many open files.
		return Volume{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return Volume{}, fmt.Errorf("%w: not a regular file", ErrCorrupt)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Volume{}, err
	}
	if len(b) > maxSize {
		return Volume{}, fmt.Errorf("%w: larger than %d bytes", ErrCorrupt, maxSize)
	}
	v, err := decode(b)
	if err != nil {
		return Volume{}, err
	}
	if fileName(v.VolumeID) != name {
		return Volume{}, fmt.Errorf("%w: the file's name is not that of the volume in it", ErrCorrupt)
	}
	return v, nil
}

func decode(b []byte) (Volume, error) {
	// The version comes first, because a later version may have fields that this driver does not know.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Volume{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if head.Version < 1 {
		return Volume{}, fmt.Errorf("%w: it has no version", ErrCorrupt)
	}
	v := Volume{Version: head.Version}
	if err := v.check(); errors.Is(err, ErrVersion) {
		return Volume{}, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return Volume{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := v.check(); err != nil {
		return Volume{}, err
	}
	return v, nil
}

// SetAside moves the record of a volume to a directory that Load does not read, so that an administrator can inspect
// it.
func (s *Store) SetAside(volumeID string) error {
	if err := s.moveAside(fileName(volumeID)); err != nil {
		return fmt.Errorf("set aside record of volume %s: %w", volumeID, err)
	}
	return nil
}

func (s *Store) moveAside(name string) error {
	bad := filepath.Join(s.dir, badDir)
	if err := os.MkdirAll(bad, 0o700); err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.dir, name), filepath.Join(bad, name))
}

func (s *Store) path(volumeID string) string { return filepath.Join(s.dir, fileName(volumeID)) }

// fileName returns a hash, so that no volume id is ever a path (CVE-2026-3864).
func fileName(volumeID string) string {
	return fmt.Sprintf("%x%s", sha256.Sum256([]byte(volumeID)), suffix)
}

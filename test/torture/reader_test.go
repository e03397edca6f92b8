// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// readers is a process that reads all volumes all the time. With the layout links it reads like programs that read
// atomically: it opens ..data once, and all files through it. It reports an error at once.
type readers struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.Closer
	ended  chan struct{}
	mu     sync.Mutex
	wrong  []string
	totals string
}

// startReaders starts the process, which pauses after it has read all volumes.
func startReaders(t testing.TB, root string, pause time.Duration) *readers {
	t.Helper()
	r := &readers{t: t, cmd: testkit.Helper(t, false, "reader", root, pause.String()), ended: make(chan struct{})}
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdin = stdin
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stderr = os.Stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			r.mu.Lock()
			if total, ok := strings.CutPrefix(lines.Text(), "total "); ok {
				r.totals = total
			} else if len(r.wrong) < 20 {
				r.wrong = append(r.wrong, lines.Text())
			}
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() { // for a test that does not reach stop
		r.stdin.Close()
		<-r.ended
		_ = r.cmd.Wait()
	})
	return r
}

// check fails the test if the readers have reported an error.
func (r *readers) check() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.wrong {
		r.t.Errorf("a reader saw: %s", w)
	}
	r.wrong = nil
}

// stop ends the process and returns the number of times that it read a volume.
func (r *readers) stop() (reads int) {
	r.t.Helper()
	r.stdin.Close()
	<-r.ended
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("the readers ended: %v", err)
	}
	r.check()
	if _, err := fmt.Sscan(r.totals, &reads); err != nil || reads == 0 {
		r.t.Errorf("the readers read nothing: %q, %v", r.totals, err)
	}
	return reads
}

// readerMain is the main function of the process.
func readerMain(args []string) error {
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test
		close(stop)
	}()
	pause, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	reads, latest := 0, map[string]part{}
	for {
		select {
		case <-stop:
			fmt.Println("total", reads)
			return nil
		case <-time.After(pause): // leaves CPU time to the driver
		}
		targets, err := filepath.Glob(filepath.Join(args[0], "pods", "*", "volumes", "kubernetes.io~csi", "u*", "mount"))
		if err != nil {
			return err
		}
		for _, target := range targets {
			parts, err := readParts(target)
			if errors.Is(err, errNothing) {
				continue
			}
			if err != nil {
				fmt.Printf("%s: %s\n", target, strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			for name, now := range parts {
				path := filepath.Join(target, name)
				if err := now.after(latest[path]); err != nil {
					fmt.Printf("%s: %v\n", path, err)
				}
				if !now.mixed {
					latest[path] = now
				}
			}
			reads++
		}
	}
}

// errNothing means that there is no volume to read, not even a wrong one.
var errNothing = errors.New("no volume")

// readVolume reads a volume and returns the version of all its files. The error is errNothing, or the problem with the
// volume.
func readVolume(target string) (version int, err error) {
	parts, err := readParts(target)
	if err != nil {
		return 0, err
	}
	for _, p := range parts {
		version = p.version
	}
	for name, p := range parts {
		if p.mixed || p.version != version {
			return 0, fmt.Errorf("file %s is not of version %d: %+v", name, version, parts)
		}
	}
	return version, nil
}

// readParts reads a volume, and returns its parts by name: each file, or with the layout links the whole volume, which
// has the name "". The error is errNothing, or the problem with the volume.
func readParts(target string) (map[string]part, error) {
	want, err := parseOwned(filepath.Base(filepath.Dir(target)))
	if err != nil {
		return nil, err
	}
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errNothing
	}
	defer unix.Close(root)
	var stx unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx); err != nil ||
		stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, errNothing
	}
	if want.layout != attributes.LayoutLinks {
		return readPlain(root, want, stx.Btime)
	}
	for range 1000 {
		version, err := readData(root, want)
		if !errors.Is(err, errReplaced) {
			return map[string]part{"": {version: version}}, err
		}
	}
	return nil, errReplaced
}

// errReplaced means that the version was replaced during the read, and its files were being removed. Every reader of
// this layout has to read again then.
var errReplaced = errors.New("the version is replaced again and again")

func readData(root int, want owned) (version int, err error) {
	dir, err := openData(root)
	if err != nil {
		return 0, errReplaced // If ..data is missing instead, 1000 attempts will show it.
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if errors.Is(err, unix.ENOENT) { // The directory is removed.
		return 0, errReplaced
	}
	if err != nil {
		return 0, err
	}
	missing := len(names) == 0
	for _, name := range names {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			missing = true
			continue
		}
		if err != nil {
			return 0, err
		}
		_, text, err := readFile(fd, name, want)
		if err != nil {
			return 0, err
		}
		v, err := parse(keyOf(name), text)
		if err != nil {
			return 0, err
		}
		if version != 0 && v != version {
			return 0, fmt.Errorf("files of version %d and of version %d through one open of ..data", version, v)
		}
		version = v
	}
	slices.Sort(names)
	if !missing && slices.Equal(names, want.files(version)) {
		return version, nil
	}
	// Files are missing. That is an error unless the version was replaced in the meantime.
	now, err := openData(root)
	if err != nil {
		return 0, errReplaced
	}
	defer now.Close()
	a, errA := dir.Stat()
	b, errB := now.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return 0, err
	}
	if !os.SameFile(a, b) {
		return 0, errReplaced
	}
	return 0, fmt.Errorf("version %d has the files %q, not %q", version, names, want.files(version))
}

func openData(root int) (*os.File, error) {
	fd, err := unix.Openat(root, "..data", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "..data"), nil
}

func readFile(fd int, name string, want owned) (st unix.Stat_t, text string, err error) {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return st, "", err
	}
	if err := want.check(&st); err != nil {
		return st, "", fmt.Errorf("file %s: %w", name, err)
	}
	b, err := io.ReadAll(f)
	return st, string(b), err
}

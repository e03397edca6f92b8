// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errLocked = errors.New("a cluster runs there already")

// lockInterval is the interval of polling, because a context cannot end a wait in flock.
const lockInterval = 20 * time.Millisecond

// tryLock takes the lock of a file, which it creates if it is missing. If the lock is taken, the error is errLocked.
// Closing every copy of the file releases the lock.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, errLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

// waitLock waits for the lock and takes it.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	ticker := time.NewTicker(lockInterval)
	defer ticker.Stop()
	for {
		lock, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock of %s: %w", path, context.Cause(ctx))
		}
	}
}

// lockSoon takes the lock, unless a cluster holds it. It tolerates a process that holds the lock for a moment to read
// its owner.
func lockSoon(path string) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Second, errLocked)
	defer cancel()
	return waitLock(ctx, path)
}

// Stop ends the cluster of a folder, even during its start, and waits until nothing of it is left. If no cluster is
// running, Stop removes what a crash has left.
func Stop(ctx context.Context, runDir string) error {
	path := Paths(runDir).Lock()
	lock, err := tryLock(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // The folder does not exist.
	}
	if errors.Is(err, errLocked) {
		if err := terminateHolder(path); err != nil {
			return err
		}
		lock, err = waitLock(ctx, path)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return Clean(ctx, runDir)
}

// terminateHolder sends SIGTERM to the keep process that holds this lock. If keep has already ended, node ends by
// itself.
func terminateHolder(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the lock: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return fmt.Errorf("read the lock: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read the process id in %s: %w", path, err)
	}
	process, err := os.FindProcess(pid) // refers to the process even if its number is used again
	if err != nil {
		return fmt.Errorf("find process %d: %w", pid, err)
	}
	defer func() { _ = process.Release() }()
	// If keep was killed, the number may belong to another process now. So check the command line.
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil ||
		!strings.Contains(string(line), "\x00keep\x00") {
		return nil
	}
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ask process %d to end: %w", pid, err)
	}
	return nil
}

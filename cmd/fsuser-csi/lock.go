// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// lockDir locks the records in dir against other drivers until unlock is called or the process is killed.
//
// A thread with a file table of its own holds the lock (docs/decisions/0017-the-lock-belongs-to-a-thread.md). The other
// threads share one table, and the kernel closes the files in that table only when the last of them has ended. After
// SIGKILL, a thread may be blocked in a system call while a container holds the lock of a directory.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // The thread has a copy.
	locked, release := make(chan error), make(chan struct{})
	var holding sync.WaitGroup
	holding.Go(func() { holdLock(int(f.Fd()), locked, release) })
	unlock = func() {
		close(release)
		holding.Wait()
	}
	if err := <-locked; err != nil {
		unlock()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another driver is running with %s: %w", dir, err)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return unlock, nil
}

// holdLock locks the open file fd in a thread of its own, sends the result to locked, and holds the lock until release
// is closed. The thread ends with the goroutine.
func holdLock(fd int, locked chan<- error, release <-chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread can't end before the process, and /proc/PID/fd shows its file table. This goroutine
		// stays in the first thread, so that another goroutine gets another thread.
		defer runtime.UnlockOSThread()
		var other sync.WaitGroup
		other.Go(func() { holdLock(fd, locked, release) })
		other.Wait()
		return
	}
	// The range contains no descriptor, so nothing is closed, and the thread gets a copy of the whole table. The copy must
	// contain the descriptors of Go's runtime, because a thread that goes to sleep may wake the network poller.
	err := unix.CloseRange(math.MaxUint32, math.MaxUint32, unix.CLOSE_RANGE_UNSHARE)
	if err != nil {
		locked <- os.NewSyscallError("close_range", err)
		return
	}
	defer unix.Close(fd)
	locked <- unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	<-release
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// lock creates a file and takes its advisory lock. It returns the function that releases the lock. The kernel also
// releases the lock when the process ends. If lock has to wait, it prints a line.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		fmt.Fprint(progress, "waiting for another build of it ... ")
		err = waitForLock(ctx, file)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// waitForLock blocks in flock, which does not support contexts. If ctx ends first, the call continues, because the
// command is about to end.
func waitForLock(ctx context.Context, file *os.File) error {
	locked := make(chan error, 1)
	go func() { locked <- flock(file, syscall.LOCK_EX) }()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func flock(file *os.File, how int) error {
	for {
		if err := syscall.Flock(int(file.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

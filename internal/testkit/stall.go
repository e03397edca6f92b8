// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	stallHelper = "stall"
	// stallTimeout bounds the start of a stall, which normally takes a few milliseconds.
	stallTimeout = 30 * time.Second
)

// Stall makes another process hold the lock of a directory, as a process in a container can: the process lists the
// directory into memory, and nobody resolves the page fault of that memory. A mkdir, rename or unlink in the directory
// waits in D state until release is called or t ends. So does every later lookup and listing. Stall returns when the
// lock is held. TestMain must call RunInMountNamespace or RunHelper.
func Stall(t testing.TB, dir string) (release func()) {
	t.Helper()
	end, err := StartStall(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := false
	release = func() {
		if done {
			return
		}
		done = true
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return release
}

// StartStall is Stall without a test. The stall also ends when this process ends.
func StartStall(dir string) (release func() error, err error) {
	if os.Getenv(helperName) != "" {
		return nil, errors.New("the main function of this program calls neither RunInMountNamespace nor RunHelper")
	}
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), helperName+"="+stallHelper, withoutExitSleep())
	cmd.Stderr = os.Stderr
	// The helper ends at the end of its standard input, which also comes when this process ends.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("stall %s: %w", dir, err)
	}
	end := func() error { return errors.Join(stdin.Close(), cmd.Wait()) }
	timeout := time.AfterFunc(stallTimeout, func() { _ = cmd.Process.Kill() })
	defer timeout.Stop()
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("stall %s within %v: %w", dir, stallTimeout, errors.Join(err, end()))
	}
	return end, nil
}

// HangingThreads returns the number of threads of a process in D state: they wait in the kernel, and no signal ends the
// wait.
func HangingThreads(pid int) (n int, err error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return 0, err
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // The thread has ended.
		}
		if _, state, _ := strings.Cut(string(b), ") "); strings.HasPrefix(state, "D") {
			n++
		}
	}
	return n, nil
}

// dead reports whether a process has ended, or was killed and will end when the kernel releases its threads.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		switch name, value, _ := strings.Cut(line, ":\t"); name {
		case "State":
			if value[0] == 'Z' || value[0] == 'X' {
				return true
			}
		case "SigPnd":
			pending, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}

// stall lists the directory args[0] into a page of a userfaultfd, writes a byte to standard output when the kernel
// waits for the page with the directory's lock held, and returns at the end of standard input. The end of the process
// ends the kernel's wait.
func stall(args []string) error {
	dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", args[0], err)
	}
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map a page: %w", err)
	}
	faults, err := faultsOf(page)
	if err != nil {
		return err
	}
	listed := make(chan error, 1)
	go func() {
		_, err := unix.Getdents(dir, page)
		listed <- fmt.Errorf("the listing of %s did not wait: %v", args[0], err)
	}()
	waits := make(chan error, 1)
	go func() {
		var message [32]byte // struct uffd_msg
		_, err := unix.Read(faults, message[:])
		waits <- err
	}()
	select {
	case err := <-listed:
		return err
	case err := <-waits:
		if err != nil {
			return fmt.Errorf("read the page fault: %w", err)
		}
	}
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// faultsOf returns a userfaultfd that reports the first access to page, which waits until the descriptor is closed.
func faultsOf(page []byte) (fd int, err error) {
	const (
		uffdAPI             = 0xaa
		ioctlAPI            = 0xc018aa3f // UFFDIO_API
		ioctlRegister       = 0xc020aa00 // UFFDIO_REGISTER
		registerModeMissing = 1          // UFFDIO_REGISTER_MODE_MISSING
	)
	r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("userfaultfd: %w", errno)
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdAPI}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, r, ioctlAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return 0, fmt.Errorf("UFFDIO_API: %w", errno)
	}
	register := struct{ start, length, mode, ioctls uint64 }{
		start:  uint64(uintptr(unsafe.Pointer(unsafe.SliceData(page)))),
		length: uint64(len(page)),
		mode:   registerModeMissing,
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, r, ioctlRegister, uintptr(unsafe.Pointer(&register))); errno != 0 {
		return 0, fmt.Errorf("UFFDIO_REGISTER: %w", errno)
	}
	return int(r), nil
}

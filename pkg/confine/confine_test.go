// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"confined": confined})
	os.Exit(m.Run())
}

// report describes a confined process from the inside.
type report struct {
	// Threads has, by thread, the relevant lines of /proc/self/task/*/status.
	Threads map[string]map[string]string
	// Refused has the result of each forbidden attempt, and Allowed that of each permitted one; "" means success.
	Refused, Allowed map[string]string
	CoreLimit        string
	Dumpable         int
	Umask            int
}

// confined confines its process and writes a report. Threads exist before the confinement and start after it.
func confined(args []string) error {
	release := make(chan struct{})
	var ready, ended sync.WaitGroup
	thread := func() {
		ready.Add(1)
		ended.Go(func() {
			// A blocking system call occupies a thread of its own.
			var pipe [2]int
			if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
				panic(err)
			}
			go func() { <-release; unix.Close(pipe[1]) }()
			ready.Done()
			unix.Read(pipe[0], make([]byte, 1))
		})
	}
	for range 3 {
		thread()
	}
	ready.Wait()
	if err := Process(true); err != nil {
		return err
	}
	for range 3 {
		thread()
	}
	ready.Wait()
	r := report{Threads: map[string]map[string]string{}, Refused: map[string]string{}, Allowed: map[string]string{}}
	if err := r.readThreads(); err != nil {
		return err
	}
	dir := args[0]
	for name, attempt := range map[string]func() error{
		"execve":   func() error { return exec.Command("/bin/true").Run() },
		"exec":     func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"mount":    func() error { return unix.Mount("none", dir, "tmpfs", 0, "") },
		"unshare":  func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"setns":    func() error { return unix.Setns(0, unix.CLONE_NEWNS) },
		"ptrace":   func() error { return unix.PtraceAttach(os.Getppid()) },
		"kill":     func() error { return unix.Kill(os.Getppid(), 0) },
		"chroot":   func() error { return unix.Chroot(dir) },
		"mknod":    func() error { return unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))) },
		"setuid":   func() error { _, _, e := unix.RawSyscall(unix.SYS_SETUID, 1, 0, 0); return errOrNil(e) },
		"capset":   func() error { _, _, e := unix.RawSyscall(unix.SYS_CAPSET, 0, 0, 0); return errOrNil(e) },
		"bpf":      func() error { _, _, e := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0); return errOrNil(e) },
		"keyctl":   func() error { _, _, e := unix.RawSyscall(unix.SYS_KEYCTL, 0, 0, 0); return errOrNil(e) },
		"io_uring": func() error { _, _, e := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); return errOrNil(e) },
		"process_vm_readv": func() error {
			_, _, e := unix.RawSyscall(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0)
			return errOrNil(e)
		},
		"init_module": func() error { _, _, e := unix.RawSyscall(unix.SYS_INIT_MODULE, 0, 0, 0); return errOrNil(e) },
		"open_by_handle_at": func() error {
			_, _, e := unix.RawSyscall(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0)
			return errOrNil(e)
		},
		// This would start a thread in a namespace of its own. Without the filter, the kernel would return EINVAL, because
		// CLONE_SIGHAND is missing. So the call has no effect in any case.
		"clone": func() error {
			_, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.CLONE_THREAD|unix.CLONE_NEWNS), 0, 0, 0, 0, 0)
			return errOrNil(e)
		},
		"tgkill": func() error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
		// This would start a process instead of a thread.
		"fork": func() error {
			pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if e == 0 && pid == 0 {
				unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
			}
			return errOrNil(e)
		},
	} {
		r.Refused[name] = text(attempt())
	}
	for name, attempt := range map[string]func() error{
		"file of another user": func() error {
			path := filepath.Join(dir, "file")
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				return err
			}
			if err := os.Chown(path, 1000, 1000); err != nil {
				return err
			}
			if err := os.Chmod(path, 0); err != nil {
				return err
			}
			_, err := os.ReadFile(path)
			return err
		},
		"memory for a file that grows": func() error {
			f, err := os.CreateTemp(dir, "")
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1)
		},
		"a file system": func() error {
			fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
			unix.Close(fd)
			return err
		},
		"a socket": func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				l.Close()
			}
			return err
		},
	} {
		r.Allowed[name] = text(attempt())
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return err
	}
	r.CoreLimit = fmt.Sprint(core)
	r.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	r.Umask = unix.Umask(0o077)
	close(release)
	ended.Wait()
	return json.NewEncoder(os.Stdout).Encode(r)
}

func (r *report) readThreads() error {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		lines := map[string]string{}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			lines[name] = strings.TrimSpace(value)
		}
		r.Threads[file] = lines
	}
	return nil
}

func errOrNil(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestAConfinedProcessHasWhatItNeedsAndNoMore(t *testing.T) {
	cmd := testkit.Helper(t, false, "confined", t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(r.Threads) < 6 {
		t.Errorf("only %d threads were there to look at", len(r.Threads))
	}
	// four is the set of CHOWN (bit 0), DAC_OVERRIDE (1), FOWNER (3) and SYS_ADMIN (21): capabilities(7).
	const four = "000000000020000b"
	for thread, lines := range r.Threads {
		for name, want := range map[string]string{
			"CapInh": "0000000000000000", "CapPrm": four, "CapEff": four, "CapBnd": four, "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			if lines[name] != want {
				t.Errorf("%s: %s is %q, want %q", thread, name, lines[name], want)
			}
		}
	}
	for name, got := range r.Refused {
		if !strings.Contains(got, "operation not permitted") {
			t.Errorf("%s: got %q, want a refusal", name, got)
		}
	}
	for name, got := range r.Allowed {
		if got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if r.CoreLimit != "{0 0}" || r.Dumpable != 0 || r.Umask != 0o077 {
		t.Errorf("core limit %s, dumpable %d, umask %#o", r.CoreLimit, r.Dumpable, r.Umask)
	}
}

// The filter ignores names that the machine does not know. A missing system call would be noticed only on that machine,
// where the driver would not start.
func TestEverySystemCallIsOne(t *testing.T) {
	names := SystemCalls()
	for machine, test := range map[*arch.Info][]string{
		arch.X86_64: {"fstatat"},
		// The kernel has these system calls for older architectures only. Programs on arm64 use others.
		arch.AARCH64: {"access", "arch_prctl", "epoll_wait", "lstat", "newfstatat", "open", "poll", "readlink", "select",
			"stat", "time"},
	} {
		var missing []string
		for _, name := range names {
			if _, ok := machine.SyscallNames[name]; !ok {
				missing = append(missing, name)
			}
		}
		slices.Sort(missing)
		if !slices.Equal(missing, test) {
			t.Errorf("%s lacks %q, want %q", machine.Name, missing, test)
		}
	}
	// os.Stat makes these system calls, by the numbers of <asm/unistd.h>.
	for machine, number := range map[*arch.Info]int{arch.X86_64: 262, arch.AARCH64: 79} {
		if name := machine.SyscallNumbers[number]; !slices.Contains(names, name) {
			t.Errorf("%s: system call %d, %q, is not allowed", machine.Name, number, name)
		}
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(SystemCalls()) {
		t.Error("a name is there twice")
	}
	for _, name := range []string{"execve", "execveat", "ptrace", "mount", "setns", "unshare", "pivot_root", "chroot",
		"bpf", "init_module", "clone", "clone3", "seccomp"} {
		if slices.Contains(SystemCalls(), name) {
			t.Errorf("%s is allowed", name)
		}
	}
}

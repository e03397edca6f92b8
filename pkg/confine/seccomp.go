// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// filterSystemCalls makes the kernel refuse, with EPERM, every system call that is not among SystemCalls, in all
// threads.
func filterSystemCalls() error {
	filter, err := filter()
	if err != nil {
		return err
	}
	// Loading for all threads also sets no_new_privs for them if the loading thread has it (seccomp(2),
	// SECCOMP_FILTER_FLAG_TSYNC). That covers a thread that was just starting during the earlier call for all threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := seccomp.LoadFilter(filter); err != nil {
		return fmt.Errorf("%w (does this kernel have CONFIG_SECCOMP_FILTER?)", err)
	}
	return nil
}

// namespaces are the flags of clone(2) that make a namespace.
const namespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID |
	unix.CLONE_NEWUSER | unix.CLONE_NEWUTS

func filter() (seccomp.Filter, error) {
	machine, err := arch.GetInfo("")
	if err != nil {
		return seccomp.Filter{}, err
	}
	known := func(names []string) []string {
		return slices.DeleteFunc(names, func(name string) bool { _, ok := machine.SyscallNames[name]; return !ok })
	}
	return seccomp.Filter{
		Flag: seccomp.FilterFlagTSync, // all threads
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno, // EPERM
			Syscalls: []seccomp.SyscallGroup{
				// A filter can't read their arguments, which are in memory. Without clone3, a C library uses clone.
				{Names: known([]string{"clone3"}), Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)},
				{Names: known(SystemCalls()), Action: seccomp.ActionAllow, NamesWithCondtions: []seccomp.NameWithConditions{
					// The driver may start threads, but no processes, and no namespaces.
					{Name: "clone", Conditions: seccomp.ArgumentConditions{
						{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD},
						{Argument: 0, Operation: seccomp.BitsNotSet, Value: namespaces},
					}},
					// Go's runtime interrupts its own threads.
					{Name: "tgkill", Conditions: seccomp.ArgumentConditions{
						{Argument: 0, Operation: seccomp.Equal, Value: uint64(os.Getpid())},
					}},
				}},
			},
		},
	}, nil
}

// SystemCalls returns the names of the system calls that the driver may make, in addition to those that start and
// interrupt threads. Some architectures lack some of them, or have another name: newfstatat of amd64 is fstatat on
// arm64.
func SystemCalls() []string {
	return slices.Concat(
		// These are for Go's runtime, and for a C library beneath it.
		[]string{
			"arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group", "futex", "getcpu",
			"getpid", "getppid", "getrandom", "getrlimit", "getrusage", "gettid", "gettimeofday", "madvise", "membarrier",
			"mincore", "mlock", "mmap", "mprotect", "mremap", "munlock", "munmap", "nanosleep", "prctl", "prlimit64",
			"restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend",
			"rt_sigtimedwait", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_yield", "set_robust_list",
			"set_tid_address", "setitimer", "sigaltstack", "sysinfo", "time", "timer_create", "timer_delete", "timer_settime",
			"uname", "getegid", "geteuid", "getgid", "getuid", "capget",
		},
		// These are for waiting, pipes and events.
		[]string{
			"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "pipe2", "poll", "ppoll",
			"pselect6", "select", "inotify_add_watch", "inotify_init1", "inotify_rm_watch",
		},
		// These are for files.
		[]string{
			"access", "chdir", "close", "close_range", "copy_file_range", "dup", "dup3", "faccessat", "faccessat2", "fallocate",
			"fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fcntl", "fdatasync", "flock", "fstat", "fstatat",
			"fstatfs", "fsync", "ftruncate", "getcwd", "getdents64", "ioctl", "linkat", "lseek", "lstat", "mkdirat",
			"newfstatat", "open", "openat", "openat2", "pread64", "preadv", "pwrite64", "pwritev", "read", "readlink",
			"readlinkat", "readv", "renameat", "renameat2", "sendfile", "splice", "stat", "statfs", "statx", "symlinkat",
			"umask", "unlinkat", "utimensat", "write", "writev",
		},
		// These are for mounts, with descriptors. mount(2), which takes paths, and namespaces are forbidden.
		[]string{
			"fsconfig", "fsmount", "fsopen", "fspick", "listmount", "mount_setattr", "move_mount", "name_to_handle_at",
			"open_tree", "statmount", "umount2",
		},
		// These are for sockets.
		[]string{
			"accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg",
			"recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket",
		},
	)
}

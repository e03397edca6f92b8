// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// maxSocketPath is the longest path of a unix socket, in bytes (unix(7): 108 with the terminating zero).
const maxSocketPath = 107

// Socket is a listening unix socket that accepts only connections of root.
type Socket struct {
	*net.UnixListener
	path string
	self os.FileInfo
}

// Listen makes a socket at path. The socket appears at path with mode 0600 in one step: Listen binds it under a hidden
// name, which kubelet ignores in plugins_registry, and renames it. Listen replaces a socket that an earlier process
// left. Any other file at path is an error.
func Listen(path string) (*Socket, error) {
	hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if len(hidden) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s is longer than the %d bytes that a unix socket can have",
			path, maxSocketPath-1)
	}
	for _, p := range []string{path, hidden} {
		if st, err := os.Lstat(p); err == nil && st.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is there and is not a socket; remove it", p)
		}
	}
	dir := filepath.Dir(path)
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("the directory %s for the socket is not there; "+
			"is --kubelet-root kubelet's root directory, and its directory of this plugin mounted?", dir)
	}
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Closing must not unlink by name, because the name may already belong to the socket of another instance.
	l.SetUnlinkOnClose(false)
	failpoint.Hit("driver-socket-bound")
	s := &Socket{UnixListener: l, path: path}
	if err := s.appear(hidden); err != nil {
		return nil, errors.Join(err, os.Remove(hidden), l.Close())
	}
	return s, nil
}

func (s *Socket) appear(hidden string) (err error) {
	if err := os.Chmod(hidden, 0o600); err != nil {
		return err
	}
	if s.self, err = os.Lstat(hidden); err != nil {
		return err
	}
	return os.Rename(hidden, s.path)
}

// Unlink removes the socket from the file system, if path still names this socket.
func (s *Socket) Unlink() {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.self) {
		if err := os.Remove(s.path); err != nil {
			klog.ErrorS(err, "Socket not removed", "path", s.path)
		}
	}
}

// Accept implements net.Listener. It refuses peers that are not root, regardless of the modes of the socket and its
// directories: a peer that can call the driver can get the volume of any pod.
func (s *Socket) Accept() (net.Conn, error) {
	for {
		conn, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && uid == 0 {
			return conn, nil
		}
		klog.ErrorS(err, "Refused a connection of a peer that is not root", "socket", s.path, "uid", uid)
		conn.Close()
	}
}

// peerUID returns the user of the process that made the connection (SO_PEERCRED of unix(7)).
func peerUID(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

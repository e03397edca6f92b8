// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// listening makes a socket that is closed and removed when t ends.
func listening(t *testing.T, path string) *Socket {
	t.Helper()
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Unlink()
		s.Close()
	})
	return s
}

// reaches fails t unless a connection to path reaches s.
func reaches(t *testing.T, path string, s *Socket) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	accepted, err := s.Accept()
	if err != nil {
		t.Fatalf("the connection to %s went elsewhere: %v", path, err)
	}
	accepted.Close()
}

func TestSocketIsRootsAlone(t *testing.T) {
	testkit.NothingLeft(t)
	t.Cleanup(func(mask int) func() { return func() { unix.Umask(mask) } }(unix.Umask(0)))
	path := filepath.Join(shortDir(t), "csi.sock")
	s := listening(t, path)
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v with an umask of 0, want %v", st.Mode(), os.ModeSocket|0o600)
	}
	reaches(t, path, s)
}

// Kubelet dials a socket as soon as its name appears, so the socket must be ready by then. Kubelet ignores names that
// begin with a dot.
func TestSocketAppearsByRename(t *testing.T) {
	testkit.NothingLeft(t)
	dir := shortDir(t)
	events := watch(t, dir)
	listening(t, filepath.Join(dir, "csi.sock"))
	want := []string{"create .csi.sock", "attrib .csi.sock", "from .csi.sock", "to csi.sock"}
	if got := events(); !slices.Equal(got, want) {
		t.Errorf("what happened in the directory was %q, want %q", got, want)
	}
}

// watch records the changes of the names in directories, in order, until t ends.
func watch(t *testing.T, dirs ...string) (events func() []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVE|unix.IN_ATTRIB); err != nil {
			t.Fatal(err)
		}
	}
	kinds := map[uint32]string{unix.IN_CREATE: "create", unix.IN_DELETE: "delete", unix.IN_MOVED_FROM: "from",
		unix.IN_MOVED_TO: "to", unix.IN_ATTRIB: "attrib"}
	return func() (events []string) {
		b := make([]byte, 64<<10)
		n, err := unix.Read(fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		for b = b[:max(n, 0)]; len(b) > 0; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
			name := b[unix.SizeofInotifyEvent:][:e.Len]
			b = b[unix.SizeofInotifyEvent+e.Len:]
			events = append(events, kinds[e.Mask&unix.IN_ALL_EVENTS]+" "+string(bytes.TrimRight(name, "\x00")))
		}
		return events
	}
}

func TestSocketReplacesAStaleOne(t *testing.T) {
	testkit.NothingLeft(t)
	path := filepath.Join(shortDir(t), "csi.sock")
	// A driver that is killed at the worst time leaves these sockets.
	for _, stale := range []string{path, filepath.Join(filepath.Dir(path), ".csi.sock")} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	s := listening(t, path)
	reaches(t, path, s)
	if exists(filepath.Join(filepath.Dir(path), ".csi.sock")) {
		t.Error("the hidden name is left")
	}
}

func TestSocketReplacesNothingElse(t *testing.T) {
	testkit.NothingLeft(t)
	for _, name := range []string{"csi.sock", ".csi.sock"} {
		for what, put := range map[string]func(path string) error{
			"a file":             func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
			"an empty file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
			"a directory":        func(path string) error { return os.Mkdir(path, 0o700) },
			"a link to a socket": func(path string) error { return os.Symlink("other.sock", path) },
			"a link to nothing":  func(path string) error { return os.Symlink("nothing", path) },
			"a pipe with a name": func(path string) error { return unix.Mkfifo(path, 0o600) },
			"a character special": func(path string) error {
				return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
			},
		} {
			t.Run(what+" at "+name, func(t *testing.T) {
				dir := shortDir(t)
				listening(t, filepath.Join(dir, "other.sock"))
				path := filepath.Join(dir, name)
				if err := put(path); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(path)
				if err != nil {
					t.Fatal(err)
				}
				s, err := Listen(filepath.Join(dir, "csi.sock"))
				if err == nil {
					s.Close()
					t.Fatal("it was replaced")
				}
				says(t, err.Error(), path+" ", "is not a socket", "remove it")
				if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
					t.Errorf("it is not there any more: %v", err)
				}
			})
		}
	}
	reliability.Shown(t, "F-23", "7 kinds of file at both names of the socket")
}

func TestSocketPathsHaveALimit(t *testing.T) {
	testkit.NothingLeft(t)
	dir := shortDir(t)
	longest := filepath.Join(dir, strings.Repeat("a", 106-len(dir)-1))
	reaches(t, longest, listening(t, longest))
	if _, err := Listen(longest + "a"); err == nil {
		t.Error("a path of 107 bytes was accepted")
	} else {
		says(t, err.Error(), longest+"a", "106 bytes")
	}
}

func TestSocketNeedsItsDirectory(t *testing.T) {
	testkit.NothingLeft(t)
	path := filepath.Join(shortDir(t), "nowhere", "csi.sock")
	if _, err := Listen(path); err == nil ||
		!strings.Contains(err.Error(), filepath.Dir(path)+" for the socket is not there") {
		t.Errorf("got %v", err)
	}
}

// After an upgrade, the old driver may end when the new one serves already.
func TestSocketTakesOnlyItselfAway(t *testing.T) {
	testkit.NothingLeft(t)
	path := filepath.Join(shortDir(t), "csi.sock")
	a := listening(t, path)
	b := listening(t, path)
	a.Unlink()
	reaches(t, path, b)
	// A third socket is about to appear.
	hidden := filepath.Join(filepath.Dir(path), ".csi.sock")
	c, err := net.Listen("unix", hidden)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	reaches(t, path, b)
	if !exists(hidden) {
		t.Error("the socket that closed took the hidden name of another one with it")
	}
	b.Unlink()
	if exists(path) {
		t.Error("the socket is there after it has vanished")
	}
	b.Unlink()
}

func TestAnOldDriverLeavesTheNewOnesSocketsAlone(t *testing.T) {
	testkit.NothingLeft(t)
	a := run(t, fakeVolumes{})
	old, err := os.Lstat(a.RegistrationSocket)
	if err != nil {
		t.Fatal(err)
	}
	b := runIn(t, a.root, fakeVolumes{})
	testkit.Eventually(t, patience, "the second driver's registration socket", func() bool {
		now, err := os.Lstat(a.RegistrationSocket)
		return err == nil && !os.SameFile(old, now)
	})
	a.stop(t)
	for _, path := range []string{b.Endpoint, b.RegistrationSocket} {
		if !exists(path) {
			t.Errorf("the driver that ended took %s with it", path)
		}
	}
	answers(t, dial(t, b.Endpoint))
}

// These bytes are the beginning of a client's connection (RFC 9113, 3.4): a preface, and a SETTINGS frame.
const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	hello   = preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
)

// speak is a process that speaks HTTP/2 to the socket in its argument. It fails if it can't connect, and prints the
// answer.
func speak(args []string) error {
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	got, err := converse(conn, []byte(hello))
	fmt.Printf("uid %d: %d bytes, closed %t", os.Getuid(), len(got), err == nil)
	return nil
}

// converse sends bytes and reads until the other end closes the connection. err is a timeout if that does not happen.
func converse(conn net.Conn, send []byte) (got []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(send); err != nil && !errors.Is(err, unix.EPIPE) {
		return nil, err
	}
	got, err = io.ReadAll(conn)
	if errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	return got, err
}

// H-106 of docs/hostile-inputs.md.
func TestPeersThatAreNotRootAreRefused(t *testing.T) {
	testkit.NothingLeft(t)
	log := testkit.LogOf(t, 5).Text
	r := run(t, fakeVolumes{})
	mine := dial(t, r.Endpoint)
	answers(t, mine)
	for _, socket := range []string{r.Endpoint, r.RegistrationSocket} {
		// The modes permit everybody to connect.
		for path := socket; path != filepath.Dir(r.root); path = filepath.Dir(path) {
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		for uid, want := range map[uint32]string{1000: "uid 1000: 0 bytes, closed true",
			65534: "uid 65534: 0 bytes, closed true"} {
			cmd := testkit.Helper(t, false, "speak", socket)
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
				t.Errorf("%s: %q, %v; want %q", socket, out, err, want)
			}
		}
		// The driver answers root with the same bytes, so the user was the reason for the refusal.
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write([]byte(hello)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 1 {
			t.Errorf("root is not heard at %s: %v", socket, err)
		}
		conn.Close()
	}
	answers(t, mine)
	answers(t, dial(t, r.Endpoint))
	r.stop(t)
	says(t, log(), "not root", "uid=1000", "uid=65534")
}

// H-102 and H-103 of docs/hostile-inputs.md.
func TestWhatIsNotGRPCDisturbsNobody(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{})
	before := dial(t, r.Endpoint)
	answers(t, before)

	silent := make([]net.Conn, 1000)
	halves := []string{"", preface[:10], preface}
	for i := range silent {
		conn, err := net.Dial("unix", r.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, halves[i%len(halves)]); err != nil {
			t.Error(err)
		}
		silent[i] = conn
	}
	connected := time.Now()
	var talking sync.WaitGroup
	for what, words := range map[string][]byte{
		"garbage":            bytes.Repeat([]byte{0, 0xff, '\n', 'x'}, 1000),
		"HTTP/1.1":           []byte("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
		"the hello of TLS":   append([]byte{22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3}, make([]byte, 194)...),
		"HTTP/2 and garbage": append([]byte(preface), bytes.Repeat([]byte{0xff}, 1000)...),
		"a frame of 16 MiB":  []byte(preface + "\xff\xff\xff\x04\x00\x00\x00\x00\x00"),
	} {
		talking.Go(func() {
			conn, err := net.Dial("unix", r.Endpoint)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := converse(conn, words); err != nil {
				t.Errorf("%s: the connection was not closed: %v", what, err)
			}
		})
		answers(t, before)
	}
	talking.Wait()
	answers(t, dial(t, r.Endpoint))
	// The driver closes the connection 3 s after the last byte. The bound here is for a busy machine.
	for i, conn := range silent {
		if err := conn.SetReadDeadline(connected.Add(15 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a connection that said %q is still open after %v", halves[i%len(halves)], time.Since(connected))
		}
	}
	answers(t, before)
}

// H-100 of docs/hostile-inputs.md.
func TestAMessageThatIsTooLongIsRefused(t *testing.T) {
	testkit.NothingLeft(t)
	log := testkit.LogOf(t, 0)
	r := run(t, fakeVolumes{})
	conn := dial(t, r.Endpoint)
	req := request(t, r.root)
	delete(req.VolumeContext, "secretName")
	req.Secrets = map[string]string{"k": strings.Repeat("x", 5<<20)}
	_, err := csi.NewNodeClient(conn).NodePublishVolume(deadline(t), req)
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("5 MiB: %v", status.Code(err))
	}
	says(t, err.Error(), "larger than max")
	// gRPC answers before it calls the driver. The driver writes the log last.
	testkit.Eventually(t, 10*time.Second, "the driver to log it",
		func() bool { return strings.Contains(log.Text(), "could not be read") })
	says(t, log.Text(), "A request could not be read", `method="NodePublishVolume"`, "(--max-message-bytes)")
	if n := metric(t, r.Driver, "fsuser_rpc_duration_seconds", "ResourceExhausted", "NodePublishVolume"); n != 1 {
		t.Errorf("%v calls were counted, want 1", n)
	}
	// The largest Secret is accepted.
	req.Secrets = map[string]string{"k": strings.Repeat("x", 1<<20)}
	if _, err := csi.NewNodeClient(conn).NodePublishVolume(deadline(t), req); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
	answers(t, conn)
}

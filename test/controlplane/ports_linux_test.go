// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"
)

// ipLocalPortRange is IP_LOCAL_PORT_RANGE (Linux 6.3): it limits the ports from which the kernel chooses for one
// socket. The lower 16 bits are the lowest port.
const ipLocalPortRange = 51

func TestReservedPort(t *testing.T) {
	p, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.release() }()

	t.Run("is there for whoever names it, again and again", func(t *testing.T) {
		for range 2 {
			listener, err := net.Listen("tcp4", p.address)
			if err != nil {
				t.Fatalf("listen: %v", err)
			}
			listener.Close()
		}
	})
	t.Run("is not given to a listener of any port", func(t *testing.T) {
		socket := socketOfOnePort(t, p)
		if _, err := bindLoopback(socket); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("bind: error %v, want %v", err, syscall.EADDRINUSE)
		}
	})
	t.Run("is not given to a connection", func(t *testing.T) {
		server, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("listen: %v", err)
		}
		defer server.Close()
		to := &syscall.SockaddrInet4{Port: server.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
		if err := syscall.Connect(socketOfOnePort(t, p), to); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("connect: error %v, want %v", err, syscall.EADDRNOTAVAIL)
		}
	})
	t.Run("is free once released", func(t *testing.T) {
		released := p
		p.release()
		p = port{} // The descriptor may soon belong to another socket.
		socket := socketOfOnePort(t, released)
		if _, err := bindLoopback(socket); err != nil {
			t.Error(err)
		}
	})
}

// socketOfOnePort returns a socket for which the kernel can choose only this port.
func socketOfOnePort(t *testing.T, p port) int {
	t.Helper()
	number, err := strconv.Atoi(p.port())
	if err != nil {
		t.Fatal(err)
	}
	socket, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(socket) })
	err = syscall.SetsockoptInt(socket, syscall.IPPROTO_IP, ipLocalPortRange, number<<16|number)
	if errors.Is(err, syscall.ENOPROTOOPT) {
		t.Skip("the kernel has no IP_LOCAL_PORT_RANGE (Linux 6.3), without which this cannot be told from luck")
	}
	if err != nil {
		t.Fatalf("set IP_LOCAL_PORT_RANGE: %v", err)
	}
	return socket
}

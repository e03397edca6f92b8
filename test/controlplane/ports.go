// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// ports are the ports of one control plane.
type ports struct{ etcdClient, etcdPeer, apiServer port }

// reservePorts reserves one port for each server. apiServer is the port of the API server, or 0 for any. It is reserved
// first, so that no other reservation takes it.
func reservePorts(apiServer int) (_ ports, err error) {
	var p ports
	for _, one := range []struct {
		port   *port
		number int
	}{{&p.apiServer, apiServer}, {&p.etcdClient, 0}, {&p.etcdPeer, 0}} {
		if *one.port, err = reservePortNumber(one.number); err != nil {
			p.release()
			return ports{}, err
		}
	}
	return p, nil
}

func (p ports) release() {
	for _, one := range []port{p.etcdClient, p.etcdPeer, p.apiServer} {
		one.release()
	}
}

// port is a TCP port of 127.0.0.1 that no other program gets while it is reserved.
//
// The usual way is to listen on port 0 and close the listener. That has a race at the start, and a worse one while the
// API server is stopped: the kernel may give the port to the connection of a client, and then the API server cannot
// start again. Instead, a socket stays bound to the port and never listens. The kernel then does not give the port to a
// program that binds to any free port, but a socket that binds to this number can also bind and listen if both have
// SO_REUSEADDR, which every Go listener sets.
type port struct {
	address string // host:port; empty if no port is reserved
	socket  int
}

func reservePort() (port, error) { return reservePortNumber(0) }

// reservePortNumber reserves the port with this number, or any port for 0.
func reservePortNumber(number int) (_ port, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("reserve a port of 127.0.0.1: %w", err)
		}
	}()
	socket, err := newSocket()
	if err != nil {
		return port{}, err
	}
	bound, err := bindLoopbackPort(socket, number)
	if err != nil {
		syscall.Close(socket)
		return port{}, err
	}
	return port{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(bound)), socket: socket}, nil
}

// newSocket makes a socket that no child inherits, also on systems that require two calls for that.
func newSocket() (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	syscall.CloseOnExec(socket)
	return socket, nil
}

func bindLoopback(socket int) (int, error) { return bindLoopbackPort(socket, 0) }

func bindLoopbackPort(socket, number int) (int, error) {
	if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Port: number, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	name, err := syscall.Getsockname(socket)
	if err != nil {
		return 0, fmt.Errorf("get the bound address: %w", err)
	}
	address, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		return 0, fmt.Errorf("get the bound address: it is a %T, not IPv4", name)
	}
	return address.Port, nil
}

func (p port) release() {
	if p.address != "" {
		syscall.Close(p.socket)
	}
}

func (p port) port() string {
	_, number, _ := net.SplitHostPort(p.address)
	return number
}

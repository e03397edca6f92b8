// SPDX-License-Identifier: Apache-2.0

package faultproxy

import (
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
)

// Network is a listener whose connections a test can break. It is safe for concurrent use.
type Network struct {
	net.Listener

	mu       sync.Mutex
	cut      bool
	healed   chan struct{} // closed unless stalled
	open     map[*connection]bool
	accepted int
}

func newNetwork(l net.Listener) *Network {
	healed := make(chan struct{})
	close(healed)
	return &Network{Listener: l, healed: healed, open: map[*connection]bool{}}
}

// NewRelay returns a Network that forwards the bytes of its connections to an address, and back. It ends with t.
func NewRelay(t testing.TB, address string) *Network {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := newNetwork(l)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := n.Accept()
			if err != nil {
				return
			}
			running.Go(func() { pass(conn, address) })
		}
	})
	t.Cleanup(func() {
		n.Close()
		n.closeAll()
		running.Wait()
	})
	return n
}

// pass connects conn with an address, until one of the two connections ends.
func pass(conn net.Conn, address string) {
	defer conn.Close()
	upstream, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer upstream.Close()
	var running sync.WaitGroup
	running.Go(func() {
		_, _ = io.Copy(upstream, conn)
		upstream.Close()
	})
	_, _ = io.Copy(conn, upstream)
	conn.Close()
	running.Wait()
}

// closeAll closes all connections.
func (n *Network) closeAll() {
	n.mu.Lock()
	open := slices.Collect(maps.Keys(n.open))
	n.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// Cut resets all connections, and each new one, until Heal.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = true
	for c := range n.open {
		reset(c.Conn)
	}
}

// Stall holds back all traffic in both directions until Heal. Connections stay open, new connections succeed, and
// neither end gets an error, as with a firewall that drops packets.
func (n *Network) Stall() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.healed:
		n.healed = make(chan struct{})
	default: // already stalled
	}
}

// Heal ends Cut and Stall. Stalled data arrives if both ends still wait for it.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = false
	select {
	case <-n.healed:
	default:
		close(n.healed)
	}
}

// Connections returns the number of connections so far, including those that Cut reset immediately.
func (n *Network) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.accepted
}

// Accept implements net.Listener.
func (n *Network) Accept() (net.Conn, error) {
	for {
		conn, err := n.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := n.admit(conn); c != nil {
			return c, nil
		}
	}
}

func (n *Network) admit(conn net.Conn) net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.accepted++
	if n.cut {
		reset(conn)
		return nil
	}
	c := &connection{Conn: conn, network: n, closed: make(chan struct{})}
	c.close = sync.OnceValue(func() error {
		close(c.closed)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.open, c)
		return conn.Close()
	})
	n.open[c] = true
	return c
}

// reset closes a connection with RST.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

type connection struct {
	net.Conn
	network *Network
	closed  chan struct{}
	close   func() error
}

// wait returns once the network is not stalled, or the connection is closed.
func (c *connection) wait() error {
	c.network.mu.Lock()
	healed := c.network.healed
	c.network.mu.Unlock()
	select {
	case <-healed:
		return nil
	case <-c.closed:
		return net.ErrClosed
	}
}

// Read implements net.Conn.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if stalled := c.wait(); stalled != nil {
		return 0, stalled
	}
	return n, err
}

// Write implements net.Conn.
func (c *connection) Write(p []byte) (int, error) {
	if err := c.wait(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *connection) Close() error { return c.close() }

// SetLinger lets a Handler reset its connection.
func (c *connection) SetLinger(seconds int) error { return c.Conn.(*net.TCPConn).SetLinger(seconds) }

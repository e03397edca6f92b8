// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"io"
	"net"
)

// forward connects the clients of a listener, which is in another network namespace, to an address in this one, until
// the listener fails.
func forward(listener net.Listener, address string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", address)
			if err != nil {
				return // The client's connection ends.
			}
			defer server.Close()
			pipe(client, server)
		}()
	}
}

// pipe copies in both directions until both have ended. It forwards the end of each direction.
func pipe(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyAndClose(a, b)
	}()
	copyAndClose(b, a)
	<-done
}

func copyAndClose(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if tcp, ok := to.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// TestFlood floods the CSI socket with connections of root (others are refused, H-106): H-102, H-103 and H-104 of
// docs/hostile-inputs.md. The driver serves kubelet's calls in the meantime, and afterwards it is as small as before.
func TestFlood(t *testing.T) {
	connections, streams, rounds := 2000, 1500, 2
	if os.Getenv("FSUSER_TORTURE") != "" {
		connections, rounds = 10000, 20
	}
	nothingLeft(t)
	// The race detector would multiply the driver's memory, and never free it.
	d := testkit.StartDriver(t, testkit.BuildDriverWithoutRace(t), "--manifests="+keysManifest(t))
	socket := filepath.Join(d.Root, "plugins", "fsuser.csi.io", "csi.sock")
	calm := served(t, d, func() bool { return false })
	fds, goroutines, calmMemory := d.Metric("process_open_fds"), d.Metric("go_goroutines"),
		d.Metric("process_resident_memory_bytes")
	// given waits until the driver's memory is at most this.
	given := func(most float64) (memory float64) {
		t.Helper()
		testkit.Eventually(t, 30*time.Second, fmt.Sprintf("resident memory of no more than %.0f MiB", most/(1<<20)),
			func() bool {
				memory = d.Metric("process_resident_memory_bytes")
				return memory <= most
			})
		return memory
	}

	var worst time.Duration
	var largest, afterFirst, afterLast float64
	for round := range rounds {
		for _, flood := range []struct {
			name string
			pour func(t *testing.T, socket string) (drain func())
		}{
			{"connections that say nothing", func(t *testing.T, socket string) func() {
				return dialled(t, socket, connections, nil)
			}},
			{"connections with half a hello", func(t *testing.T, socket string) func() {
				return dialled(t, socket, connections, []byte(http2.ClientPreface[:10]))
			}},
			{"garbage", func(t *testing.T, socket string) func() {
				return dialled(t, socket, connections, bytes.Repeat([]byte{0, 0xff, '\n', 'x'}, 100))
			}},
			{"HTTP/1", func(t *testing.T, socket string) func() {
				return dialled(t, socket, connections, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
			}},
			{"messages that never end, on many streams",
				func(t *testing.T, socket string) func() { return unfinished(t, socket, streams) }},
			{"calls on many streams", func(t *testing.T, socket string) func() {
				return concurrent(t, d.Root, socket, streams)
			}},
			{"messages that are too long", func(t *testing.T, socket string) func() { return oversized(t, d.Root, socket, 5) }},
		} {
			t.Run(flood.name, func(t *testing.T) {
				var pouring sync.WaitGroup
				poured := make(chan struct{})
				var drain func()
				pouring.Go(func() {
					defer close(poured)
					drain = flood.pour(t, socket)
				})
				slowest := served(t, d, func() bool {
					select {
					case <-poured:
						return false
					default:
						return true
					}
				})
				pouring.Wait()
				// Serve once more while the whole flood is there.
				slowest = max(slowest, served(t, d, func() bool { return false }))
				most, memory := d.Metric("process_open_fds"), d.Metric("process_resident_memory_bytes")
				drain()
				testkit.Eventually(t, 30*time.Second, "descriptors and goroutines to be back where they were", func() bool {
					return d.Metric("process_open_fds") <= fds+5 && d.Metric("go_goroutines") <= goroutines+20
				})
				t.Logf("the slowest call of kubelet took %v, in calm %v; descriptors %v, resident memory %.0f MiB", slowest, calm,
					most, memory/(1<<20))
				worst, largest = max(worst, slowest), max(largest, memory)
				if slowest > 5*time.Second {
					t.Errorf("a call of kubelet took %v", slowest)
				}
				if memory > 512<<20 {
					t.Errorf("%v bytes of resident memory", memory)
				}
			})
		}
		// After the first round, the runtime keeps a little more memory (about 20 MiB). This must not grow with the rounds.
		if round == 0 {
			afterFirst = given(calmMemory + 48<<20)
			afterLast = afterFirst
		} else {
			afterLast = given(afterFirst + 16<<20)
		}
	}
	if status, body := d.Get("/healthz"); status != 200 {
		t.Errorf("health: %d %s", status, body)
	}
	reliability.Shown(t, "F-38", fmt.Sprintf("%d rounds of 7 floods of %d connections or %d streams: %.0f MiB before, at "+
		"most %.0f, %.0f after the first round and %.0f after the last; a call of kubelet in %v",
		rounds, connections, streams, calmMemory/(1<<20), largest/(1<<20), afterFirst/(1<<20), afterLast/(1<<20),
		worst.Round(time.Millisecond)))
}

// keysManifest returns a directory with the Secret "keys".
func keysManifest(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text := "apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: default}\nstringData: {k: text}\n"
	if err := os.WriteFile(filepath.Join(dir, "keys.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// served publishes and unpublishes over kubelet's connection and a new one, 20 times and while more returns true. It
// returns the duration of the slowest call.
func served(t *testing.T, d *testkit.Driver, more func() bool) (slowest time.Duration) {
	t.Helper()
	p, v := pod("served"), ssh("secretName", "keys")
	for i := 0; i < 20 || more(); i++ {
		start := time.Now()
		target, err := d.Publish(deadline(t), p, v)
		slowest = max(slowest, time.Since(start))
		if err != nil {
			t.Error(err)
			return slowest
		}
		if b, err := os.ReadFile(filepath.Join(target, "k")); err != nil || string(b) != "text" {
			t.Errorf("the volume holds %q, %v", b, err)
		}
		start = time.Now()
		unpublish(t, d, p, "ssh")
		slowest = max(slowest, time.Since(start))

		again, err := kubelet.Connect(d.Root, filepath.Join(d.Root, "plugins", "fsuser.csi.io", "csi.sock"))
		if err != nil {
			t.Error(err)
			return slowest
		}
		start = time.Now()
		ctx := deadline(t)
		_, err = again.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
		// If too many clients connect at once, some get an error and must try again, as kubelet does.
		for status.Code(err) == codes.Unavailable && ctx.Err() == nil {
			_, err = again.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}, grpc.WaitForReady(true))
		}
		if err != nil {
			t.Errorf("over a new connection: %v", err)
		}
		slowest = max(slowest, time.Since(start))
		again.Close()
	}
	return slowest
}

// dialled opens n connections that send these bytes and then nothing more.
func dialled(t *testing.T, socket string, n int, words []byte) (drain func()) {
	var all []net.Conn
	for range n {
		conn, err := net.Dial("unix", socket)
		// The queue of the socket is full (EAGAIN), or this process has no descriptor left. There are enough connections.
		if err != nil {
			break
		}
		all = append(all, conn)
		if len(words) > 0 {
			conn.Write(words) // The driver may have closed the connection.
		}
	}
	if len(all) < 500 {
		t.Errorf("only %d connections came to be", len(all))
	}
	return func() {
		for _, conn := range all {
			conn.Close()
		}
	}
}

// unfinished opens streams, and begins a message of 4 MiB on each. Only a few bytes of each message are sent.
func unfinished(t *testing.T, socket string, streams int) (drain func()) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return func() {}
	}
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(io.Discard, conn) })
	var head bytes.Buffer
	fields := hpack.NewEncoder(&head)
	message := append(binary.BigEndian.AppendUint32([]byte{0}, 4<<20), "few bytes"...)
	_, err = io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, nil)
	err = errors.Join(err, framer.WriteSettings())
	opened := 0
	for ; opened < streams && err == nil; opened++ {
		head.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"},
			{":path", csi.Node_NodePublishVolume_FullMethodName}, {":authority", "x"},
			{"content-type", "application/grpc"}, {"te", "trailers"}} {
			err = errors.Join(err, fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		id := uint32(2*opened + 1)
		err = errors.Join(err, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(),
			EndHeaders: true}), framer.WriteData(id, false, message))
	}
	// Beyond as many streams as it allows the driver may refuse each, or hang up.
	if opened < 500 {
		t.Errorf("only %d streams were opened: %v", opened, err)
	}
	return func() {
		conn.Close()
		reading.Wait()
	}
}

// concurrent makes calls on many streams of one connection at once, each for a volume that can't be published.
func concurrent(t *testing.T, root, socket string, streams int) (drain func()) {
	k, err := kubelet.Connect(root, socket)
	if err != nil {
		t.Error(err)
		return func() {}
	}
	var calls sync.WaitGroup
	var mu sync.Mutex
	answers := map[codes.Code]int{}
	for i := range streams {
		calls.Go(func() {
			// The directory of the volume does not exist.
			_, err := k.NodePublishVolume(deadline(t), k.Request(pod(fmt.Sprint("flood-", i)), ssh("secretName", "keys")))
			mu.Lock()
			defer mu.Unlock()
			answers[status.Code(err)]++
		})
	}
	calls.Wait()
	if answers[codes.FailedPrecondition] != streams {
		t.Errorf("answers: %v", answers)
	}
	return func() { k.Close() }
}

// oversized sends messages of 64 MiB, which the driver does not read.
func oversized(t *testing.T, root, socket string, n int) (drain func()) {
	k, err := kubelet.Connect(root, socket)
	if err != nil {
		t.Error(err)
		return func() {}
	}
	req := k.Request(pod("oversized"), ssh())
	req.Secrets = map[string]string{"k": strings.Repeat("x", 64<<20)}
	if size := proto.Size(req); size < 64<<20 {
		t.Errorf("the message has %d bytes", size)
	}
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if _, err := k.NodePublishVolume(ctx, req); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%v", status.Code(err))
		}
		cancel()
	}
	return func() { k.Close() }
}

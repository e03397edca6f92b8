// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ssh returns a payload of 3 keys with 4 KiB in total.
func ssh(fill string) Payload {
	return payload(file("id_rsa", strings.Repeat(fill, 2600)), file("id_rsa.pub", strings.Repeat(fill, 600)),
		file("known_hosts", strings.Repeat(fill, 896)))
}

func open(b *testing.B, dir string) int {
	b.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	return fd
}

func mustWrite(b *testing.B, fd int, p Payload, want bool) {
	b.Helper()
	if changed, err := Write(fd, p); err != nil || changed != want {
		b.Fatalf("changed %v, want %v; %v", changed, want, err)
	}
}

// eachLayout runs a benchmark for each layout. The payload has 3 keys with 4 KiB in total, which repeat a letter.
func eachLayout(b *testing.B, measure func(b *testing.B, dir string, payload func(fill string) Payload)) {
	for _, layout := range []Layout{Links, Files, InPlace} {
		b.Run(layoutNames()[layout], func(b *testing.B) {
			b.ReportAllocs()
			measure(b, newVolume(b, ""), func(fill string) Payload {
				p := ssh(fill)
				p.Layout = layout
				return p
			})
		})
	}
}

func BenchmarkWriteFirst(b *testing.B) {
	eachLayout(b, func(b *testing.B, dir string, payload func(string) Payload) {
		p := payload("x")
		for b.Loop() {
			b.StopTimer()
			sub := filepath.Join(dir, "volume")
			if err := os.RemoveAll(sub); err != nil {
				b.Fatal(err)
			}
			if err := os.Mkdir(sub, 0o700); err != nil {
				b.Fatal(err)
			}
			fd := open(b, sub)
			b.StartTimer()
			mustWrite(b, fd, p, true)
			b.StopTimer()
			unix.Close(fd)
			b.StartTimer()
		}
	})
}

func BenchmarkWriteChanged(b *testing.B) {
	eachLayout(b, func(b *testing.B, dir string, payload func(string) Payload) {
		fd := open(b, dir)
		defer unix.Close(fd)
		versions := []Payload{payload("x"), payload("y")}
		mustWrite(b, fd, versions[1], true)
		i := 0
		for b.Loop() {
			mustWrite(b, fd, versions[i%2], true)
			i++
		}
	})
}

func BenchmarkWriteUnchanged(b *testing.B) {
	eachLayout(b, func(b *testing.B, dir string, payload func(string) Payload) {
		fd := open(b, dir)
		defer unix.Close(fd)
		p := payload("x")
		mustWrite(b, fd, p, true)
		for b.Loop() {
			mustWrite(b, fd, p, false)
		}
	})
}

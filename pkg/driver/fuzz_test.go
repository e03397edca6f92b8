// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// FuzzTargetPath checks that an accepted target is below the directory of the pods, belongs to the id, and can't leave
// its place, and that the message of a refusal contains no part of the input.
func FuzzTargetPath(f *testing.F) {
	good := target(testRoot, podUID, "ssh")
	for _, path := range []string{
		good, "/", "", "/etc", testRoot, testRoot + "/pods", filepath.Dir(good), good + "/", good + "/..",
		strings.Replace(good, "/ssh/", "/ssh/../ssh/", 1),
		strings.Replace(good, "~csi", "~secret", 1), strings.Replace(good, testRoot, "/data/kubelet", 1),
		strings.Replace(good, podUID, "..", 1),
		strings.Replace(good, podUID, otherUID, 1), "/" + strings.Repeat("a/", 2500), good + "\x00", good + "\n",
	} {
		f.Add(VolumeID(podUID, "ssh"), path, podUID)
	}
	f.Add("../../etc", good, podUID)
	f.Add("csi-", good, otherUID)
	f.Fuzz(func(t *testing.T, id, path, uid string) {
		for _, b := range []Binding{plain, {root: testRoot, resolved: "/data/kubelet"},
			{root: testRoot, resolved: testRoot, lenient: true}} {
			got, podUID, err := b.target(id, path)
			if err != nil {
				if got != "" || podUID != "" || strings.Contains(err.Error(), path) && len(path) > 60 {
					t.Fatalf("refused with %q, %q, %v", got, podUID, err)
				}
				continue
			}
			if !filepath.IsAbs(got) || filepath.Clean(got) != got || got == "/" || !validVolumeID(id) ||
				strings.Contains(id, "/") {
				t.Fatalf("accepted %q at %q", id, got)
			}
			if b.lenient {
				continue
			}
			parts := strings.Split(strings.TrimPrefix(got, b.resolved+"/pods/"), "/")
			if len(parts) != 5 || parts[0] != podUID || VolumeID(podUID, parts[3]) != id ||
				strings.ContainsAny(podUID+parts[3], "./~") {
				t.Fatalf("accepted %q at %q for pod %q", id, got, podUID)
			}
			if err := b.CheckTarget(id, got, uid); (err == nil) != (uid == podUID) {
				t.Fatalf("in a record for pod %q: %v", uid, err)
			}
		}
	})
}

// FuzzRequestOnSocket sends any bytes as the message of any call to a driver's socket (H-107).
func FuzzRequestOnSocket(f *testing.F) {
	var published *volume.Request
	r := run(f, fakeVolumes{publish: func(_ context.Context, req volume.Request) error {
		published = &req
		return nil
	}})
	conn := dial(f, r.Endpoint)
	methods := []string{
		csi.Node_NodePublishVolume_FullMethodName, csi.Node_NodeUnpublishVolume_FullMethodName,
		csi.Node_NodeGetVolumeStats_FullMethodName,
		csi.Node_NodeGetInfo_FullMethodName, csi.Node_NodeStageVolume_FullMethodName, csi.Identity_Probe_FullMethodName,
	}
	good := request(f, r.root)
	for _, change := range []func(*csi.NodePublishVolumeRequest){
		func(*csi.NodePublishVolumeRequest) {}, func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/etc" },
		func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, set("mode/../a", "0400"), flags("rw"),
		set("uid/a:b\n", "7", "volume", "ssh-keys", "secretName", ""),
		volumeOf("ssh-keys", "gid/certs.d/host:5000/ca.crt", "8"),
	} {
		req := proto.Clone(good).(*csi.NodePublishVolumeRequest)
		change(req)
		wire, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		for i := range methods {
			f.Add(wire, uint8(i))
		}
		f.Add(wire[:len(wire)/2], uint8(0))
	}
	f.Add([]byte{10, 2, 0xff, 0xfe}, uint8(0))
	f.Fuzz(func(t *testing.T, wire []byte, method uint8) {
		published = nil
		name := methods[int(method)%len(methods)]
		var none []byte
		err := conn.Invoke(deadline(t), name, wire, &none, grpc.ForceCodecV2(rawCodec{}))
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.Unimplemented:
		case codes.Internal:
			// The bytes are no protobuf message. gRPC reports that.
			if !strings.Contains(err.Error(), "unmarshal") {
				t.Fatalf("%s: %v", name, err)
			}
		default:
			t.Fatalf("%s: %v", name, err)
		}
		if (published != nil) != (err == nil && name == csi.Node_NodePublishVolume_FullMethodName) {
			t.Fatalf("%s: %v, and it reached the volumes: %t", name, err, published != nil)
		}
		if published == nil {
			return
		}
		req := &csi.NodePublishVolumeRequest{}
		if err := proto.Unmarshal(wire, req); err != nil {
			t.Fatal(err)
		}
		if err := bound(published, req, r.root); err != nil {
			t.Fatalf("%v: %+v", err, published)
		}
	})
}

// FuzzConnection writes any bytes to a driver's socket, at the beginning or after the preface of HTTP/2, and closes the
// connection (H-107).
func FuzzConnection(f *testing.F) {
	r := run(f, fakeVolumes{publish: func(context.Context, volume.Request) error {
		panic("it reached the volumes")
	}})
	alive := dial(f, r.Endpoint)
	for _, words := range []string{"", "GET / HTTP/1.1\r\n\r\n", hello, preface,
		preface + "\xff\xff\xff\x04\x00\x00\x00\x00\x00", "\x16\x03\x01\x00\xc8\x01\x00"} {
		f.Add([]byte(words), false)
		f.Add([]byte(words), true)
	}
	// These are HEADERS with the end of headers, and senseless CONTINUATION, SETTINGS, PING, GOAWAY and WINDOW_UPDATE.
	for _, frame := range []string{"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x82", "\x00\x00\x00\x09\x00\x00\x00\x00\x01",
		"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff", "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
		"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
		"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
		f.Add([]byte(frame), true)
	}
	f.Fuzz(func(t *testing.T, words []byte, afterHello bool) {
		conn, err := net.Dial("unix", r.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		if afterHello {
			words = append([]byte(hello), words...)
		}
		conn.Write(words) // The driver may have closed the connection.
		conn.Close()
		answers(t, alive)
	})
}

// SPDX-License-Identifier: Apache-2.0

package sanity

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// The object and the attributes of the volumes.
const (
	namespace = "default"
	secret    = "sanity"
	key       = "id_rsa"
	content   = "text"
	uid       = 1000
)

// call is a call of a method of the driver with its code.
type call struct {
	method string
	code   codes.Code
}

// proxy is a proxy in front of the driver, with a Controller service.
type proxy struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	csi.UnimplementedControllerServer

	t      *testing.T
	socket string
	driver *grpc.ClientConn

	mu   sync.Mutex
	seen map[call]int
}

// startProxy serves until t ends.
func startProxy(t *testing.T, endpoint string) *proxy {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// The path must be short for a unix socket, so this is not t.TempDir.
	dir, err := os.MkdirTemp("", "sanity-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{t: t, socket: filepath.Join(dir, "csi.sock"), driver: conn, seen: map[call]int{}}
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(p.forward))
	csi.RegisterIdentityServer(server, p)
	csi.RegisterNodeServer(server, p)
	csi.RegisterControllerServer(server, p)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return p
}

// forward forwards every call of Identity and Node to the driver, so that the proxy answers none by mistake. It checks
// the result of a publish and an unpublish.
func (p *proxy) forward(ctx context.Context, req any, info *grpc.UnaryServerInfo, own grpc.UnaryHandler) (any, error) {
	service, method := path.Split(strings.TrimPrefix(info.FullMethod, "/"))
	if service == "csi.v1.Controller/" || method == "GetPluginCapabilities" {
		return own(ctx, req)
	}
	resp, err := p.invoke(ctx, info.FullMethod, req)
	if err != nil {
		return nil, err
	}
	switch r := req.(type) {
	case *csi.NodePublishVolumeRequest:
		if err := published(p.t, r.GetTargetPath()); err != nil {
			p.t.Errorf("after a successful NodePublishVolume: %v", err)
		}
	case *csi.NodeUnpublishVolumeRequest:
		if _, err := os.Lstat(r.GetTargetPath()); !os.IsNotExist(err) {
			p.t.Errorf("after a successful NodeUnpublishVolume %s is there: %v", r.GetTargetPath(), err)
		}
	}
	return resp, nil
}

func (p *proxy) invoke(ctx context.Context, fullMethod string, req any) (any, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", ".")
	method := csi.File_csi_proto.Services().ByName(protoreflect.FullName(name).Parent().Name()).Methods().
		ByName(protoreflect.FullName(name).Name())
	resp := dynamicpb.NewMessage(method.Output())
	err := p.driver.Invoke(ctx, fullMethod, req, resp)
	p.mu.Lock()
	p.seen[call{path.Base(fullMethod), status.Code(err)}]++
	p.mu.Unlock()
	return resp, err
}

func (p *proxy) calls() map[call]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.seen)
}

// published returns an error unless the volume at target is one tmpfs with the file of uid 1000.
func published(t *testing.T, target string) error {
	if mounts := testkit.MountsBelow(t, target); len(mounts) != 1 || !strings.Contains(mounts[0], " - tmpfs ") {
		return fmt.Errorf("the mounts at the target are %q, want one tmpfs", mounts)
	}
	file := filepath.Join(target, key)
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Uid != uid || st.Mode != unix.S_IFREG|0o400 {
		return fmt.Errorf("%s belongs to %d and has mode %#o, %v", file, st.Uid, st.Mode, err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != content {
		return fmt.Errorf("%s holds %q, %v", file, b, err)
	}
	return nil
}

// GetPluginCapabilities adds a controller to the driver's answer, which must not have one.
func (p *proxy) GetPluginCapabilities(ctx context.Context,
	req *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	resp, err := csi.NewIdentityClient(p.driver).GetPluginCapabilities(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(resp.GetCapabilities()) > 0 {
		p.t.Errorf("the driver says that it has %v", resp.GetCapabilities())
	}
	resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
		Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
	}})
	return resp, nil
}

func (p *proxy) ControllerGetCapabilities(context.Context,
	*csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

// CreateVolume returns the data of an inline volume that kubelet would send.
func (p *proxy) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: req.GetName(),
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":     "true",
			"csi.storage.k8s.io/pod.name":      "sanity",
			"csi.storage.k8s.io/pod.namespace": namespace,
			"csi.storage.k8s.io/pod.uid":       "6f0a3c1e-0000-4000-8000-000000000001",
			"secretName":                       secret,
			"uid":                              fmt.Sprint(uid),
		},
	}}, nil
}

func (p *proxy) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

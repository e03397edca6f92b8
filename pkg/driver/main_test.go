// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"speak": speak})
	testkit.RunInMountNamespace(m)
}

// patience is the longest wait for an event that takes milliseconds.
const patience = 10 * time.Second

// fakeVolumes are Volumes whose test chooses the answers. The other calls succeed.
type fakeVolumes struct {
	publish   func(context.Context, volume.Request) error
	unpublish func(ctx context.Context, id, target string) error
	usage     func(ctx context.Context, id, path string) (tmpfs.Usage, error)
	ready     func() error
}

func (f fakeVolumes) Publish(ctx context.Context, req volume.Request) error {
	if f.publish == nil {
		return nil
	}
	return f.publish(ctx, req)
}

func (f fakeVolumes) Unpublish(ctx context.Context, id, target string) error {
	if f.unpublish == nil {
		return nil
	}
	return f.unpublish(ctx, id, target)
}

func (f fakeVolumes) Usage(ctx context.Context, id, path string) (tmpfs.Usage, error) {
	if f.usage == nil {
		return tmpfs.Usage{}, nil
	}
	return f.usage(ctx, id, path)
}

func (f fakeVolumes) Ready() error {
	if f.ready == nil {
		return nil
	}
	return f.ready()
}

// running is a Driver in this process that serves below a root directory of kubelet.
type running struct {
	*Driver
	root   string
	cancel context.CancelFunc
	ended  chan struct{}
	err    error
}

// run runs a Driver until t ends, or until stop. It returns when the Driver serves on both sockets.
func run(t testing.TB, volumes Volumes) *running {
	t.Helper()
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	return runIn(t, root, volumes)
}

// runIn is run with an existing root directory.
func runIn(t testing.TB, root string, volumes Volumes) *running {
	t.Helper()
	d := newDriver(t, root, volumes)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Driver: d, root: root, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = d.Run(ctx)
	}()
	t.Cleanup(func() { r.stop(t) })
	testkit.Eventually(t, patience, "the registration socket", func() bool { return exists(d.RegistrationSocket) })
	return r
}

// stop ends the Driver. It fails the test if the Driver returns an error.
func (r *running) stop(t testing.TB) {
	t.Helper()
	r.cancel()
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("Run did not return after its context had ended")
	}
	if r.err != nil {
		t.Errorf("Run: %v", r.err)
	}
}

func newDriver(t testing.TB, root string, volumes Volumes) *Driver {
	t.Helper()
	binding, err := NewBinding(root, false)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{
		Version: "v1", NodeID: "node-1", Binding: binding, Volumes: volumes,
		Endpoint:           filepath.Join(root, "plugins", Name, "csi.sock"),
		RegistrationSocket: filepath.Join(root, "plugins_registry", Name+"-reg.sock"),
		MaxMessageBytes:    4 << 20,
		Metrics:            prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// metric returns the value of a gauge, or the count of a histogram, with these values of its labels. The values are in
// the order of the labels' names.
func metric(t testing.TB, d *Driver, name string, labels ...string) float64 {
	t.Helper()
	families, err := d.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if f.GetName() == name && slices.Equal(values, labels) {
				return m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Fatalf("there is no %s %q", name, labels)
	return 0
}

// shortDir returns a directory whose path is short enough for a socket in it.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// dial connects to a socket until t ends.
func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// answers fails t unless the other end serves CSI.
func answers(t testing.TB, conn *grpc.ClientConn) {
	t.Helper()
	if _, err := csi.NewNodeClient(conn).NodeGetInfo(deadline(t), &csi.NodeGetInfoRequest{}); err != nil {
		t.Errorf("the driver does not answer: %v", err)
	}
}

// pod and aVolume are the pod and the volume of good requests.
var pod = kubelet.Pod{Namespace: "shop", Name: "web-0", UID: "6f0a3c1e-0000-4000-8000-000000000001"}

func aVolume() kubelet.Volume {
	return kubelet.Volume{Name: "ssh", Attributes: map[string]string{"secretName": "keys", "uid": "1000"}}
}

// request returns a good request of a kubelet with this root directory.
func request(t testing.TB, root string) *csi.NodePublishVolumeRequest {
	t.Helper()
	k, err := kubelet.Connect(root, filepath.Join(root, "nobody-listens-here"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	return k.Request(pod, aVolume())
}

// says fails t unless text contains all of the parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in: %s", part, text)
		}
	}
}

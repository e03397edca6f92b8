// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

func TestNewChecksItsConfig(t *testing.T) {
	good := Config{NodeID: "node-1", Binding: plain, Volumes: fakeVolumes{}, Endpoint: "/run/csi.sock",
		RegistrationSocket: "/run/reg.sock", MaxMessageBytes: 1, Metrics: prometheus.NewRegistry()}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
		says   string
	}{
		{"no node", func(c *Config) { c.NodeID = "" }, "--node-name"},
		{"a node's name of 257 bytes (H-108)", func(c *Config) { c.NodeID = strings.Repeat("n", 257) }, "257 bytes"},
		{"no volumes", func(c *Config) { c.Volumes = nil }, "Volumes"},
		{"no metrics", func(c *Config) { c.Metrics = nil }, "Metrics"},
		{"no length of messages", func(c *Config) { c.MaxMessageBytes = 0 }, "MaxMessageBytes"},
		{"an endpoint as other CSI drivers take it", func(c *Config) { c.Endpoint = "unix:///run/csi.sock" },
			"absolute path"},
		{"a relative endpoint, which kubelet would look for elsewhere", func(c *Config) { c.Endpoint = "csi.sock" },
			"absolute path"},
		{"no endpoint", func(c *Config) { c.Endpoint = "" }, "absolute path"},
		{"metrics that are registered already", func(c *Config) { c.Metrics = good.Metrics }, "duplicate"},
	} {
		c := good
		c.Metrics = prometheus.NewRegistry()
		test.change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	longest := good
	longest.NodeID, longest.Metrics = strings.Repeat("n", 256), prometheus.NewRegistry()
	if _, err := New(longest); err != nil {
		t.Errorf("a node's name of 256 bytes: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{})
	client := csi.NewIdentityClient(dial(t, r.Endpoint))
	info, err := client.GetPluginInfo(deadline(t), &csi.GetPluginInfoRequest{})
	if want := (&csi.GetPluginInfoResponse{Name: "fsuser.csi.io", VendorVersion: "v1"}); err != nil ||
		!proto.Equal(info, want) {
		t.Errorf("GetPluginInfo: %v, %v", info, err)
	}
	capabilities, err := client.GetPluginCapabilities(deadline(t), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(capabilities.GetCapabilities()) > 0 {
		t.Errorf("GetPluginCapabilities: %v, %v", capabilities, err)
	}
	probe, err := client.Probe(deadline(t), &csi.ProbeRequest{})
	if err != nil || !probe.GetReady().GetValue() {
		t.Errorf("Probe: %v, %v", probe, err)
	}
}

func TestNotReadyIfNoVolumeCanBePublished(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{ready: func() error { return errors.New("the disk is full") }})
	probe, err := csi.NewIdentityClient(dial(t, r.Endpoint)).Probe(deadline(t), &csi.ProbeRequest{})
	if err != nil || probe.GetReady() == nil || probe.GetReady().GetValue() {
		t.Errorf("Probe: %v, %v", probe, err)
	}
	if _, err := pluginregistration.NewRegistrationClient(dial(t,
		r.RegistrationSocket)).NotifyRegistrationStatus(deadline(t),
		&pluginregistration.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.Ready(); err == nil || err.Error() != "the disk is full" {
		t.Errorf("Ready: %v", err)
	}
	if metric(t, r.Driver, "fsuser_registered") != 1 {
		t.Error("fsuser_registered is not 1: whether kubelet has registered the driver has nothing to do with it")
	}
}

func TestNode(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{})
	client := csi.NewNodeClient(dial(t, r.Endpoint))
	info, err := client.NodeGetInfo(deadline(t), &csi.NodeGetInfoRequest{})
	if want := (&csi.NodeGetInfoResponse{NodeId: "node-1"}); err != nil || !proto.Equal(info, want) {
		t.Errorf("NodeGetInfo: %v, %v", info, err)
	}
	resp, err := client.NodeGetCapabilities(deadline(t), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []csi.NodeServiceCapability_RPC_Type
	for _, c := range resp.GetCapabilities() {
		got = append(got, c.GetRpc().GetType())
	}
	slices.Sort(got)
	want := []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP}
	if !slices.Equal(got, want) {
		t.Errorf("the capabilities are %v, want %v", got, want)
	}
}

// TestUnsupportedCalls walks the CSI specification: the driver must refuse each call whose capability it does not
// report (H-105).
func TestUnsupportedCalls(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{})
	conn := dial(t, r.Endpoint)
	supported := []string{
		"/csi.v1.Identity/GetPluginInfo", "/csi.v1.Identity/GetPluginCapabilities", "/csi.v1.Identity/Probe",
		"/csi.v1.Node/NodeGetInfo",
		"/csi.v1.Node/NodeGetCapabilities", "/csi.v1.Node/NodePublishVolume", "/csi.v1.Node/NodeUnpublishVolume",
		"/csi.v1.Node/NodeGetVolumeStats",
	}
	services := csi.File_csi_proto.Services()
	refused := 0
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			method := fmt.Sprintf("/%s/%s", services.Get(i).FullName(), methods.Get(j).Name())
			err := conn.Invoke(deadline(t), method, &csi.ProbeRequest{}, &csi.ProbeResponse{})
			if unimplemented := status.Code(err) == codes.Unimplemented; unimplemented == slices.Contains(supported, method) {
				t.Errorf("%s: %v", method, err)
			} else if unimplemented {
				refused++
			}
		}
	}
	if refused < 10 {
		t.Errorf("only %d calls were refused", refused)
	}
	// Each socket has its own services.
	if _, err := pluginregistration.NewRegistrationClient(conn).GetInfo(deadline(t),
		&pluginregistration.InfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("registration on the CSI socket: %v", err)
	}
	if _, err := csi.NewNodeClient(dial(t, r.RegistrationSocket)).NodeGetInfo(deadline(t),
		&csi.NodeGetInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("CSI on the registration socket: %v", err)
	}
}

// rawCodec sends bytes unchanged.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (rawCodec) Name() string                         { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

func TestBytesThatAreNoMessageAreRefused(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{publish: func(context.Context, volume.Request) error {
		t.Error("it reached the volumes")
		return nil
	}})
	conn := dial(t, r.Endpoint)
	for what, wire := range map[string][]byte{
		"a volume id that is no UTF-8 (H-015)": {10, 2, 0xff, 0xfe},
		"a length beyond the end":              {10, 100, 'a'},
		"a tag without end":                    {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		var none []byte
		err := conn.Invoke(deadline(t), csi.Node_NodePublishVolume_FullMethodName, wire, &none, grpc.ForceCodecV2(rawCodec{}))
		if status.Code(err) != codes.Internal {
			t.Errorf("%s: %v", what, err)
		}
	}
	answers(t, conn)
}

func TestRegistration(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{})
	client := pluginregistration.NewRegistrationClient(dial(t, r.RegistrationSocket))
	info, err := client.GetInfo(deadline(t), &pluginregistration.InfoRequest{})
	want := &pluginregistration.PluginInfo{
		Type: "CSIPlugin", Name: "fsuser.csi.io", SupportedVersions: []string{"1.0.0"},
		Endpoint: filepath.Join(r.root, "plugins", "fsuser.csi.io", "csi.sock"),
	}
	if err != nil || !proto.Equal(info, want) {
		t.Errorf("GetInfo: %v, %v; want %v", info, err, want)
	}
	for _, step := range []struct {
		status *pluginregistration.RegistrationStatus
		says   string
	}{
		{nil, "has not registered the driver yet"},
		{&pluginregistration.RegistrationStatus{Error: "the reason of kubelet"}, "the reason of kubelet"},
		{&pluginregistration.RegistrationStatus{PluginRegistered: true}, ""},
		{&pluginregistration.RegistrationStatus{}, "has not registered the driver yet"},
		{&pluginregistration.RegistrationStatus{PluginRegistered: true}, ""},
	} {
		if step.status != nil {
			if _, err := client.NotifyRegistrationStatus(deadline(t), step.status); err != nil {
				t.Fatal(err)
			}
		}
		if ready := metric(t, r.Driver, "fsuser_registered") == 1; ready != (step.says == "") {
			t.Errorf("after %v the metric says that the driver is registered: %t", step.status, ready)
		}
		switch err := r.Ready(); {
		case (err == nil) != (step.says == ""):
			t.Errorf("after %v the driver is ready: %v", step.status, err)
		case err != nil:
			says(t, err.Error(), step.says)
		}
	}
}

func TestWithoutRegistrationTheDriverIsReady(t *testing.T) {
	testkit.NothingLeft(t)
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, root, fakeVolumes{})
	d.RegistrationSocket = ""
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx) }()
	testkit.Eventually(t, patience, "the CSI socket", func() bool { return exists(d.Endpoint) })
	answers(t, dial(t, d.Endpoint))
	if err := d.Ready(); err != nil || metric(t, d, "fsuser_registered") != 1 {
		t.Errorf("%v; fsuser_registered is %v", err, metric(t, d, "fsuser_registered"))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(root, "plugins_registry")); err != nil || len(entries) > 0 {
		t.Errorf("in plugins_registry are %v, %v", entries, err)
	}
}

// Kubelet calls NodeGetInfo as soon as it sees the registration socket.
func TestCSIServesBeforeTheRegistrationSocketIsThere(t *testing.T) {
	testkit.NothingLeft(t)
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	events := watch(t, filepath.Join(root, "plugins", Name), filepath.Join(root, "plugins_registry"))
	r := runIn(t, root, fakeVolumes{})
	k, err := kubelet.Register(deadline(t), root)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	r.stop(t)
	all := events()
	var got []string
	for _, e := range all {
		if strings.HasPrefix(e, "to ") || strings.HasPrefix(e, "delete ") {
			got = append(got, e)
		}
	}
	// At the end the registration socket is removed first, so that kubelet sends no more calls.
	want := []string{"to csi.sock", "to fsuser.csi.io-reg.sock", "delete fsuser.csi.io-reg.sock", "delete csi.sock"}
	if !slices.Equal(got, want) {
		t.Errorf("the sockets came and went as %q, want %q", got, want)
	}
}

func TestADriverThatCanNotServeIsNotRegistered(t *testing.T) {
	testkit.NothingLeft(t)
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, root, fakeVolumes{})
	events := watch(t, filepath.Join(root, "plugins_registry"))
	if err := os.WriteFile(d.Endpoint, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); err == nil {
		t.Error("Run returned no error")
	} else {
		says(t, err.Error(), "serve CSI", d.Endpoint, "is not a socket")
	}
	if got := events(); len(got) > 0 {
		t.Errorf("in plugins_registry there was %q", got)
	}
}

func TestADriverThatCanNotRegisterDoesNotServe(t *testing.T) {
	testkit.NothingLeft(t)
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, root, fakeVolumes{})
	if err := os.Mkdir(d.RegistrationSocket, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); err == nil {
		t.Error("Run returned no error")
	} else {
		says(t, err.Error(), "register with kubelet", d.RegistrationSocket, "is not a socket")
	}
	if exists(d.Endpoint) {
		t.Error("the CSI socket is left")
	}
}

func TestRunEndsWellWhateverEndsItsContext(t *testing.T) {
	testkit.NothingLeft(t)
	root := shortDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	late, endLate := context.WithTimeout(context.Background(), time.Nanosecond)
	defer endLate()
	because, endBecause := context.WithCancelCause(context.Background())
	endBecause(errors.New("the operator wants it"))
	for what, ctx := range map[string]context.Context{"a cancel": ended, "a deadline": late, "a cause": because} {
		if err := newDriver(t, root, fakeVolumes{}).Run(ctx); err != nil {
			t.Errorf("after %s Run returned %v", what, err)
		}
	}
}

func TestACallUnderWayEndsBeforeRunReturns(t *testing.T) {
	testkit.NothingLeft(t)
	entered, release := make(chan struct{}), make(chan struct{})
	r := run(t, fakeVolumes{publish: func(ctx context.Context, _ volume.Request) error {
		close(entered)
		<-release
		return ctx.Err()
	}})
	client := csi.NewNodeClient(dial(t, r.Endpoint))
	called := make(chan error, 1)
	go func() {
		_, err := client.NodePublishVolume(deadline(t), request(t, r.root))
		called <- err
	}()
	<-entered
	r.cancel()
	testkit.Eventually(t, patience, "the sockets to go",
		func() bool { return !exists(r.RegistrationSocket) && !exists(r.Endpoint) })
	select {
	case <-r.ended:
		t.Error("Run returned while a call was under way")
	case err := <-called:
		t.Errorf("the call ended early: %v", err)
	default:
	}
	close(release)
	if err := <-called; err != nil {
		t.Errorf("the call that was under way: %v", err)
	}
	r.stop(t)
}

func TestAPanicEndsOneCallAlone(t *testing.T) {
	testkit.NothingLeft(t)
	log := testkit.LogOf(t, 5).Text
	var what any
	r := run(t, fakeVolumes{publish: func(context.Context, volume.Request) error { panic(what) }})
	client := csi.NewNodeClient(dial(t, r.Endpoint))
	var index []int
	outOfRange := func() (p any) {
		defer func() { p = recover() }()
		return index[len(os.Args)]
	}()
	for _, what = range []any{secretCanary, errors.New(secretCanary), fmt.Errorf("%w", errors.New(secretCanary)),
		struct{ text string }{secretCanary}, []byte(secretCanary), outOfRange} {
		_, err := client.NodePublishVolume(deadline(t), request(t, r.root))
		if status.Code(err) != codes.Unavailable {
			t.Errorf("a panic with a %T: %v", what, err)
		}
		fitForAnEvent(t, status.Convert(err).Message())
		if _, err := client.NodeGetInfo(deadline(t), &csi.NodeGetInfoRequest{}); err != nil {
			t.Errorf("after a panic with a %T: %v", what, err)
		}
	}
	r.stop(t)
	text := log()
	for _, form := range []string{secretCanary, fmt.Sprint([]byte(secretCanary)), fmt.Sprintf("%x", secretCanary)} {
		if strings.Contains(text, form) {
			t.Errorf("what a call panicked with is in the log: %s", text)
		}
	}
	if strings.Contains(text, "Call failed") {
		t.Errorf("a call that panicked has a second line in the log: %s", text)
	}
	says(t, text, "panic with a string", "index out of range", "NodePublishVolume", VolumeID(podUID, "ssh"),
		"driver_test.go")
}

// A request would most likely leak into the log (H-112).
func TestNoSecretGetsIntoTheLog(t *testing.T) {
	testkit.NothingLeft(t)
	log := testkit.LogOf(t, 5).Text
	r := run(t, fakeVolumes{})
	client := csi.NewNodeClient(dial(t, r.Endpoint))
	good := request(t, r.root)
	delete(good.VolumeContext, "secretName")
	good.Secrets = map[string]string{"k": secretCanary, keyTokens: tokenCanary}
	good.VolumeContext[keyTokens] = tokenCanary
	if _, err := client.NodePublishVolume(deadline(t), good); err != nil {
		t.Error(err)
	}
	good.Readonly = false
	if _, err := client.NodePublishVolume(deadline(t), good); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	r.stop(t)
	text := log()
	says(t, text, "Call failed", `"Call" method="NodePublishVolume"`)
	for _, canary := range []string{secretCanary, tokenCanary} {
		if strings.Contains(text, canary) {
			t.Errorf("%s is in the log: %s", canary, text)
		}
	}
}

func TestCallsAreMeasured(t *testing.T) {
	testkit.NothingLeft(t)
	r := run(t, fakeVolumes{publish: func(context.Context, volume.Request) error { return volume.ErrConflict }})
	client := csi.NewNodeClient(dial(t, r.Endpoint))
	for range 3 {
		client.NodePublishVolume(deadline(t), request(t, r.root))
	}
	r.stop(t)
	families, err := r.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["method"] == "NodePublishVolume" && labels["code"] == "AlreadyExists" &&
				m.GetHistogram().GetSampleCount() == 3 {
				return
			}
		}
	}
	t.Errorf("three calls are not in %v", families)
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	testkit.NothingLeft(t)
	before := runtime.NumGoroutine()
	for range 5 {
		r := run(t, fakeVolumes{})
		conn := dial(t, r.Endpoint)
		answers(t, conn)
		conn.Close()
		r.stop(t)
	}
	testkit.Eventually(t, patience, fmt.Sprintf("the goroutines to be %d again", before),
		func() bool { return runtime.NumGoroutine() <= before })
}

// SPDX-License-Identifier: Apache-2.0

// Package driver serves CSI and kubelet's plugin registration: the Identity and Node services and their sockets. It is
// the only package that turns an error into a gRPC code.
//
// A call has three steps: package driver checks the fields and makes a volume.Request (request.go), package volume does
// the work, and package driver turns its error into a status (status.go).
package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// Name is the name of the driver and of its CSIDriver object, and the value of csi.driver in a pod.
const Name = attributes.Driver

// maxNodeID is the longest node id that the API server accepts (validation of CSINode), in bytes.
const maxNodeID = 256

// Volumes is the part of a volume.Manager that the Node service uses.
type Volumes interface {
	Publish(ctx context.Context, req volume.Request) error
	Unpublish(ctx context.Context, id, target string) error
	Usage(ctx context.Context, id, path string) (tmpfs.Usage, error)
	Ready() error
}

// Config is the configuration of a Driver.
type Config struct {
	// Version is the version of the driver, for GetPluginInfo.
	Version string
	// NodeID is the name of the Kubernetes node.
	NodeID  string
	Binding Binding
	Volumes Volumes
	// Endpoint is the path of the CSI socket on the host, which kubelet dials.
	Endpoint string
	// RegistrationSocket is the path of the socket in kubelet's plugins_registry. If it is empty, the driver does not
	// register.
	RegistrationSocket string
	// MaxMessageBytes is the longest request. The driver answers a longer request with RESOURCE_EXHAUSTED and does not
	// read it.
	MaxMessageBytes int
	// Metrics registers the driver's metrics.
	Metrics prometheus.Registerer
}

// Driver serves CSI on a socket and registers the socket with kubelet.
type Driver struct {
	Config
	registration *registration
	rpcs         *prometheus.HistogramVec
}

// New checks the configuration and returns a Driver. It starts nothing: call Run.
func New(c Config) (*Driver, error) {
	switch {
	case c.NodeID == "":
		return nil, errors.New("the name of the node is empty; set --node-name (in a DaemonSet: from spec.nodeName)")
	case len(c.NodeID) > maxNodeID:
		return nil, fmt.Errorf("the name of the node has %d bytes, more than the %d that CSINode takes",
			len(c.NodeID), maxNodeID)
	case !filepath.IsAbs(c.Endpoint):
		return nil, fmt.Errorf("the CSI endpoint %q is not an absolute path; "+
			"kubelet dials the path unchanged, so omit unix://", c.Endpoint)
	case c.Volumes == nil || c.Metrics == nil || c.MaxMessageBytes <= 0:
		return nil, errors.New("driver: Volumes, Metrics and MaxMessageBytes must be set")
	}
	d := &Driver{
		Config: c,
		rpcs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fsuser_rpc_duration_seconds",
			Help: "Duration of the calls of kubelet, by CSI method and gRPC code, including calls whose request the driver " +
				"can't read. A request that is longer than --max-message-bytes has the code ResourceExhausted.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 1, 5, 30, 120},
		}, []string{"method", "code"}),
	}
	d.registration = &registration{endpoint: c.Endpoint}
	registered := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fsuser_registered",
		Help: "1 if kubelet has registered the driver, or if the driver does not register. 0 if no pod with a volume can " +
			"start on this node; /readyz shows the reason.",
	}, func() float64 {
		if d.registered() != nil {
			return 0
		}
		return 1
	})
	return d, errors.Join(c.Metrics.Register(d.rpcs), c.Metrics.Register(registered))
}

// Ready returns an error if no new pod with a volume can start: kubelet has not registered the driver, or no volume can
// be published.
func (d *Driver) Ready() error { return errors.Join(d.registered(), d.Volumes.Ready()) }

func (d *Driver) registered() error {
	if d.RegistrationSocket == "" {
		return nil
	}
	return d.registration.ready()
}

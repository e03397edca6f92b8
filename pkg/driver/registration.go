// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrationVersion is the version that the driver registers with. It never changes: kubelet accepts a second driver
// of the same name only if its version is higher, and an upgrade must not depend on that.
const registrationVersion = "1.0.0"

// registration registers the driver with kubelet, in place of the node-driver-registrar sidecar. Kubelet finds its
// socket in plugins_registry and calls GetInfo (kubelet's pkg/kubelet/pluginmanager). Safe for concurrent use.
type registration struct {
	pluginregistration.UnimplementedRegistrationServer
	endpoint string

	mu         sync.Mutex
	registered bool
	// refusal is kubelet's reason for not registering the driver.
	refusal string
}

// GetInfo answers from memory: kubelet waits one second.
func (r *registration) GetInfo(
	context.Context, *pluginregistration.InfoRequest,
) (*pluginregistration.PluginInfo, error) {
	return &pluginregistration.PluginInfo{
		Type: pluginregistration.CSIPlugin, Name: Name, Endpoint: r.endpoint,
		SupportedVersions: []string{registrationVersion},
	}, nil
}

// NotifyRegistrationStatus receives the result from kubelet. A refusal is no reason to exit: kubelet tries again by
// itself.
func (r *registration) NotifyRegistrationStatus(
	_ context.Context, s *pluginregistration.RegistrationStatus,
) (*pluginregistration.RegistrationStatusResponse, error) {
	r.mu.Lock()
	r.registered, r.refusal = s.GetPluginRegistered(), s.GetError()
	r.mu.Unlock()
	if s.GetPluginRegistered() {
		klog.InfoS("Registered with kubelet", "endpoint", r.endpoint)
	} else {
		klog.ErrorS(errors.New(s.GetError()), "Kubelet did not register the driver; it will try again")
	}
	return &pluginregistration.RegistrationStatusResponse{}, nil
}

func (r *registration) ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.registered:
		return nil
	case r.refusal != "":
		return fmt.Errorf("kubelet did not register the driver: %s", r.refusal)
	}
	return errors.New("kubelet has not registered the driver yet")
}

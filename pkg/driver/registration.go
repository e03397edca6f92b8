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

// registrationVersion is the version with which the driver registers. It never changes: kubelet accepts a second driver
// of the same name only with a higher version, and an upgrade must not depend on that.
const registrationVersion = "1.0.0"

// registration registers the driver with kubelet, in place of the node-driver-registrar sidecar. Kubelet finds its
// socket in plugins_registry and calls GetInfo (kubelet's pkg/kubelet/pluginmanager). It is safe for concurrent use.
type registration struct {
	pluginregistration.UnimplementedRegistrationServer
	endpoint string

	mu         sync.Mutex
	registered bool
	// refusal is kubelet's reason for not registering the driver.
	refusal string
}

// GetInfo answers from memory, because kubelet waits only one second.
func (r *registration) GetInfo(
	context.Context, *pluginregistration.InfoRequest,
) (*pluginregistration.PluginInfo, error) {
	return &pluginregistration.PluginInfo{
		Type: pluginregistration.CSIPlugin, Name: Name, Endpoint: r.endpoint,
		SupportedVersions: []string{registrationVersion},
	}, nil
}

// NotifyRegistrationStatus receives the result from kubelet. The driver does not exit after a refusal, because kubelet
// tries again.
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

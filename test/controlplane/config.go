// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// AdminConfig returns a client configuration with all rights: user `admin` of
// the group system:masters, with a static token. The caller may change it.
func (cp *ControlPlane) AdminConfig() *rest.Config {
	config := cp.config()
	config.BearerToken = cp.token
	return config
}

// UserConfig returns a client configuration for a user and groups, with a new
// client certificate. The user has the rights of every authenticated user, and
// those that RBAC grants. The Node authorizer grants rights to
// system:node:<name> in system:nodes. The caller may change the configuration.
func (cp *ControlPlane) UserConfig(user string, groups ...string) (*rest.Config, error) {
	// A certificate without a name has no user.
	if user == "" {
		return nil, errors.New("make a client configuration: no user name")
	}
	pair, err := cp.pki.client(user, groups)
	if err != nil {
		return nil, fmt.Errorf("make a client configuration for %s: %w", user, err)
	}
	config := cp.config()
	config.CertData, config.KeyData = pair.cert, pair.key
	return config, nil
}

func (cp *ControlPlane) config() *rest.Config {
	return &rest.Config{
		Host:            "https://" + cp.APIServerAddress(),
		TLSClientConfig: rest.TLSClientConfig{CAData: append([]byte(nil), cp.pki.certPEM...)},
		QPS:             -1, // The client must not limit the requests of a test.
	}
}

// Kubeconfig writes a configuration of AdminConfig or UserConfig to a file of
// mode 0600: the driver's --kubeconfig. The file needs no other file unless the
// configuration has a BearerTokenFile. A changed Host is kept. Rate limits are
// not part of such a file.
func (*ControlPlane) Kubeconfig(path string, cfg *rest.Config) error {
	const name = "test"
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server:                   cfg.Host,
			CertificateAuthorityData: cfg.CAData,
			TLSServerName:            cfg.ServerName,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{name: {
			Token:                 cfg.BearerToken,
			TokenFile:             cfg.BearerTokenFile,
			ClientCertificateData: cfg.CertData,
			ClientKeyData:         cfg.KeyData,
		}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}, path)
	if err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// The files in Dir that the API server reads.
const (
	caFile                   = "ca.crt"
	servingCertFile          = "kube-apiserver.crt"
	servingKeyFile           = "kube-apiserver.key"
	kubeletClientCertFile    = "kubelet-client.crt"
	kubeletClientKeyFile     = "kubelet-client.key"
	serviceAccountKeyFile    = "service-account.key"
	serviceAccountPublicFile = "service-account.pub"
	tokenFile                = "tokens.csv"
)

const (
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1" // of the service `kubernetes`: the first in the range
)

// CAFile returns the path of the certificate authority's certificate, which
// signs the API server's certificate and those of its users.
func (cp *ControlPlane) CAFile() string { return cp.path(caFile) }

// ServiceAccountKeyFile returns the path of the private key that signs the
// tokens of service accounts.
func (cp *ControlPlane) ServiceAccountKeyFile() string { return cp.path(serviceAccountKeyFile) }

func (cp *ControlPlane) path(file string) string { return filepath.Join(cp.dir, file) }

// writeCredentials makes all keys and certificates of the API server and the
// admin's token.
func (cp *ControlPlane) writeCredentials() (err error) {
	if cp.pki, err = newPKI(); err != nil {
		return err
	}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceIP)}
	if cp.advertise.IsValid() {
		addresses = append(addresses, cp.advertise.AsSlice())
	}
	serving, err := cp.pki.serving(
		[]string{
			"localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		},
		addresses,
	)
	if err != nil {
		return err
	}
	// As the API server is to kubelets, which serve logs and exec.
	kubeletClient, err := cp.pki.client("kube-apiserver-kubelet-client", []string{"system:masters"})
	if err != nil {
		return err
	}
	serviceAccount, err := newKey()
	if err != nil {
		return err
	}
	private, err := encodePrivate(serviceAccount)
	if err != nil {
		return err
	}
	public, err := encodePublic(serviceAccount)
	if err != nil {
		return err
	}
	cp.token = rand.Text()
	for name, content := range map[string][]byte{
		caFile:                   cp.pki.certPEM,
		servingCertFile:          serving.cert,
		servingKeyFile:           serving.key,
		kubeletClientCertFile:    kubeletClient.cert,
		kubeletClientKeyFile:     kubeletClient.key,
		serviceAccountKeyFile:    private,
		serviceAccountPublicFile: public,
		tokenFile:                []byte(cp.token + `,admin,admin,"system:masters"` + "\n"),
	} {
		if err := os.WriteFile(cp.path(name), content, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
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
	serviceIP    = "10.96.0.1" // the address of the service `kubernetes`: the first one of the range
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
	serving, err := cp.newServingPair()
	if err != nil {
		return err
	}
	// The API server uses this certificate for kubelets, which serve logs and exec.
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

// newServingPair makes a certificate of the API server, and its key.
func (cp *ControlPlane) newServingPair() (keyPair, error) {
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceIP)}
	if cp.advertise.IsValid() {
		addresses = append(addresses, cp.advertise.AsSlice())
	}
	names := []string{
		"localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	return cp.pki.serving(names, addresses)
}

// RotateServingCertificate replaces the certificate and the key of the API server, like a renewal by the same
// authority. It waits until new connections get the new certificate. Existing connections continue.
func (cp *ControlPlane) RotateServingCertificate(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()
	pair, err := cp.newServingPair()
	if err != nil {
		return err
	}
	// While only one of the files is new, the API server keeps its current pair.
	for name, content := range map[string][]byte{servingKeyFile: pair.key, servingCertFile: pair.cert} {
		if err := replaceFile(cp.path(name), content); err != nil {
			return fmt.Errorf("write the API server's new certificate: %w", err)
		}
	}
	block, _ := pem.Decode(pair.cert)
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		served, err := cp.servedCertificate(ctx)
		if err == nil && bytes.Equal(served, block.Bytes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the API server serves its new certificate: %w (%w)", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// servedCertificate returns the certificate that a new connection gets.
func (cp *ControlPlane) servedCertificate(ctx context.Context) ([]byte, error) {
	roots := x509.NewCertPool()
	roots.AddCert(cp.pki.cert)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots}}
	conn, err := dialer.DialContext(ctx, "tcp", cp.APIServerAddress())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw, nil
}

// replaceFile replaces the content of a file in one step.
func replaceFile(path string, content []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

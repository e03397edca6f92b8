// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// platform is the platform that the cluster under test is set up like. It has no name in other runs than those of make
// pages.
func platform() Platform {
	i := slices.IndexFunc(Platforms(), func(p Platform) bool { return p.Name == os.Getenv("PLATFORM") })
	if i < 0 {
		return Platform{}
	}
	return Platforms()[i]
}

// kubeletRoot is kubelet's root directory on the nodes.
func kubeletRoot() string {
	if root := platform().KubeletRoot; root != "" {
		return root
	}
	return cluster.KubeletRoot
}

// TestPlatform installs and uninstalls the driver with the commands of docs/platforms.md for one platform: with Helm,
// and with the platform's kustomize component.
func TestPlatform(t *testing.T) {
	p, pages := platform(), platformPages(t)
	if p.Name == "" {
		t.Fatal("PLATFORM names no platform; run: make pages")
	}
	tagImages(t)
	if p.Setup != "" {
		if _, err := kubectl(suite, p.Setup, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("helm", func(t *testing.T) {
		c := newCheckout(t)
		c.run(pages.platforms, "kubectl create namespace", "")
		c.run(pages.platforms, "kubectl label namespace", "")
		c.run(pages.platforms.section(p.Name), "helm install", "")
		n := pages.installed(c, p)
		c.run(pages.install, "helm test", "")
		n.leave(c, pages.install)
		c.run(pages.install, "helm uninstall", "")
		c.run(pages.install, "kubectl delete namespace", "")
		notInstalled(t)
	})
	if p.Component == "" {
		return
	}
	t.Run("kustomize", func(t *testing.T) {
		c := newCheckout(t)
		c.write("kustomization.yaml", strings.Replace(pages.platforms.example(t, "components: [deploy/kustomize/k0s]"),
			"kustomize/k0s", "kustomize/"+p.Component, 1))
		c.run(pages.install, "kubectl apply -k", "")
		n := pages.installed(c, p)
		n.leave(c, pages.install)
		c.run(pages.install, "kubectl delete -k", "")
		notInstalled(t)
	})
}

// pagesOfPlatforms are the pages whose commands TestPlatform runs.
type pagesOfPlatforms struct{ install, platforms *page }

// platformPages reads the pages, and checks that TestPlatform runs the helm command of each section.
func platformPages(t *testing.T) pagesOfPlatforms {
	t.Helper()
	pages := pagesOfPlatforms{readPage(t, installPage), readPage(t, platformsPage)}
	for _, b := range pages.platforms.blocks {
		if strings.Contains(b.text, "helm install") &&
			!slices.ContainsFunc(Platforms(), func(p Platform) bool { return p.Name == b.section }) {
			t.Errorf("%s has a command for %s, which is not in Platforms", platformsPage, b.section)
		}
	}
	return pages
}

// installed waits until the driver is installed, and starts a pod.
func (pages pagesOfPlatforms) installed(c checkout, p Platform) *tenant {
	c.t.Helper()
	c.run(pages.install, "rollout status", "")
	installed(c.t, manifestNode)
	if p.Check != "" {
		shell(c.t, "", p.Check)
	}
	n := newTenant(c.t)
	n.start()
	return n
}

// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// olderVersion is the version of a chart that differs from this one only in its version.
const olderVersion = "0.0.9"

// chartVersion is the version of the driver that the chart installs.
func chartVersion(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(chart + "/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^appVersion: (.*)$`).FindSubmatch(content)
	if match == nil {
		t.Fatal("Chart.yaml has no appVersion")
	}
	return string(match[1])
}

// olderCheckout returns a checkout of olderVersion.
func olderCheckout(t *testing.T) checkout {
	t.Helper()
	c := newCheckout(t)
	content, err := os.ReadFile(chart + "/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.write("deploy/chart/Chart.yaml", strings.ReplaceAll(string(content), "appVersion: "+chartVersion(t),
		"appVersion: "+olderVersion))
	return c
}

// testInstallPage installs, changes, upgrades and uninstalls the driver with each command of deploy/README.md, as the
// page has it. Only NAMESPACE is replaced. The nodes have the images by the names that the page and the chart use.
func testInstallPage(t *testing.T) {
	nothingLeft(t)
	if err := uninstall(suite, installedFirst); err != nil {
		t.Fatal(err)
	}
	notInstalled(t)
	tagImages(t)
	p := readPage(t, installPage)
	// These two require a registry.
	others := []string{"make image", "skopeo copy"}
	if before136() {
		t.Run("what the version lacks is refused with the remedy", testOldKubernetes)
		t.Run("helm template", func(t *testing.T) { rendered(t, p) })
		t.Run("helm", func(t *testing.T) { withHelm(t, p, "create-namespace --set access=namespaces", manifestNamespaces) })
		others = append(others, "image.registry=", " -k ", "deploy/fsuser-csi-fs-user.yaml", "deploy/fsuser-csi-allow.yaml",
			fromNode)
	} else {
		t.Run("kustomize", func(t *testing.T) { withKustomize(t, p) })
		t.Run("helm", func(t *testing.T) { withHelm(t, p, "image.registry=", manifestNode) })
		others = append(others, "create-namespace --set access=namespaces", "--kube-version 1.35")
	}
	// testAccess runs these commands.
	others = append(others, fromCluster, toNode)
	t.Run("every command", func(t *testing.T) {
		p.allRan(t, others...)
		sameCommands(t, readPage(t, readme), p)
	})
}

// sameCommands checks that a page has commands of helm, and only such as another page has.
func sameCommands(t *testing.T, p, other *page) {
	t.Helper()
	commands := slices.DeleteFunc(p.commands(), func(c string) bool { return !strings.HasPrefix(c, "helm ") })
	if len(commands) == 0 {
		t.Errorf("%s has no command of helm; has its form changed?", p.path)
	}
	for _, c := range commands {
		if !slices.Contains(other.commands(), c) {
			t.Errorf("%s has a command that %s does not have: %s", p.path, other.path, c)
		}
	}
}

// tagImages gives the images on all nodes the names that the pages and the chart use.
func tagImages(t *testing.T) {
	t.Helper()
	names := map[string]string{"docker.io/library/busybox:1.37": "fsuser.test/busybox:1"}
	for _, repository := range []string{"localhost/fsuser-csi:", "registry.example.com/fsuser-csi:"} {
		names[repository+chartVersion(t)], names[repository+olderVersion] = image, image
	}
	for _, node := range nodes {
		for name, of := range names {
			if _, err := node.Run(suite, "ctr", "-n", "k8s.io", "images", "tag", "--force", of, name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// tenant is a namespace with a pod that runs while the driver is replaced.
type tenant struct {
	namespace
	version int
}

func newTenant(t *testing.T) *tenant {
	t.Helper()
	n := &tenant{withoutConsent(t), 1}
	n.secret("s", "key", "v1")
	return n
}

// start runs the pod.
func (n *tenant) start() {
	n.t.Helper()
	n.run(watchingPod("held", `secretName: s`))
	n.served()
}

// served checks that the pod has kept its files and its container, that the driver shows a change to the pod, and that
// another pod starts.
func (n *tenant) served() {
	n.t.Helper()
	n.expect("held", "", show("/v/key"), fmt.Sprintf("1000:0 400\nv%d", n.version))
	n.version++
	content := fmt.Sprintf("v%d", n.version)
	n.changeSecret("s", "key", content)
	n.waitSaid("held", "/v/key "+content)
	n.run(onePod(content, `secretName: s`))
	n.expect(content, "", show("/v/key"), "1000:0 400\n"+content)
	n.delete(content)
	if restarts := podOf(n.namespace, "held").Status.ContainerStatuses[0].RestartCount; restarts > 0 {
		n.t.Errorf("the container of the pod has restarted %d times", restarts)
	}
}

// leave lists the pods that use the driver, as the page says, and deletes the pod.
func (n *tenant) leave(c checkout, p *page) {
	n.t.Helper()
	list := strings.Fields(c.run(p, "custom-columns", ""))
	if want := []string{n.name, "held", driverName}; !slices.Equal(list, want) {
		n.t.Errorf("the pods that use the driver are %q, want %q", list, want)
	}
	n.delete("held")
}

// consented runs the page's command for the owner of a namespace.
func (n *tenant) consented(c checkout, p *page) {
	n.t.Helper()
	c.run(p, "create rolebinding", n.name)
}

// recant runs the page's commands that list and delete the RoleBindings.
func (n *tenant) recant(c checkout, p *page) {
	n.t.Helper()
	if list := c.run(p, "get rolebindings", ""); !slices.Contains(strings.Fields(list), n.name) {
		n.t.Errorf("the RoleBindings are\n%s\nwant one of namespace %s among them", list, n.name)
	}
	c.run(p, "delete rolebinding", n.name)
}

// withKustomize installs the driver with the page's kustomization, adds the components that do not change the driver's
// pods, changes the access, and uninstalls.
func withKustomize(t *testing.T, p *page) {
	c, n := newCheckout(t), newTenant(t)
	example := p.example(t, "resources: [deploy]")
	apply := func(kustomization, manifest string) {
		t.Helper()
		c.write("kustomization.yaml", kustomization)
		c.run(p, "kubectl apply -k", "")
		c.run(p, "rollout status", "")
		installed(t, manifest)
	}
	apply(example, manifestNode)
	n.start()
	c.run(p, "apply -f deploy/fsuser-csi-fs-user.yaml", "")
	c.run(p, "apply -f deploy/fsuser-csi-allow.yaml", "")
	apply(example+"components: [deploy/kustomize/gke, deploy/kustomize/openshift]\n", manifestNode)
	for _, object := range []string{"resourcequota/fsuser-csi", "rolebinding/fsuser-csi-privileged"} {
		shell(t, "", "kubectl -n "+driverNamespace+" get "+object)
	}
	apply(strings.Replace(example, "[deploy]", "["+strings.TrimPrefix(manifestCluster, "../../")+"]", 1), manifestCluster)
	c.run(p, fromNode, "")
	n.served()
	n.leave(c, p)
	c.run(p, "delete -f deploy/fsuser-csi-fs-user.yaml", "")
	c.run(p, "delete -f deploy/fsuser-csi-allow.yaml", "")
	c.run(p, "kubectl delete -k", "")
	notInstalled(t)
}

// rendered installs and uninstalls the driver with the manifest that Helm renders for Kubernetes 1.35.
func rendered(t *testing.T, p *page) {
	c, n := newCheckout(t), newTenant(t)
	c.run(p, "kubectl apply -f -", "")
	c.run(p, "rollout status", "")
	installed(t, manifestNamespaces)
	n.consented(c, p)
	n.start()
	n.leave(c, p)
	c.run(p, "kubectl delete -f -", "")
	n.recant(c, p)
	notInstalled(t)
}

// withHelm installs an older version of the chart, upgrades it to this version, goes back, changes the access, and
// uninstalls.
func withHelm(t *testing.T, p *page, install, manifest string) {
	older, c, n, newer := olderCheckout(t), newCheckout(t), newTenant(t), chartVersion(t)
	running := func(manifest, version string) {
		t.Helper()
		c.run(p, "rollout status", "")
		installed(t, manifest)
		if got := driverPod(t).Spec.Containers[0].Image; !strings.HasSuffix(got, ":"+version) {
			t.Errorf("the driver's image is %s, want version %s", got, version)
		}
	}
	older.run(p, install, "")
	c.run(p, "label --overwrite namespace", "")
	running(manifest, olderVersion)
	if manifest == manifestNamespaces {
		n.consented(c, p)
	}
	n.start()
	c.run(p, "helm test", "")
	c.run(p, "helm upgrade fsuser-csi deploy/chart --namespace fsuser-csi --reset-then-reuse-values", "")
	running(manifest, newer)
	n.served()
	c.run(p, "helm rollback", "")
	running(manifest, olderVersion)
	n.served()
	c.run(p, "--reset-then-reuse-values --set access=namespaces", "")
	if manifest != manifestNamespaces {
		n.consented(c, p)
	}
	running(manifestNamespaces, newer)
	n.served()
	n.leave(c, p)
	c.run(p, "helm uninstall", "")
	c.run(p, "kubectl delete namespace", "")
	n.recant(c, p)
	notInstalled(t)
}

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

func TestAdhoc(t *testing.T) {
	c := startCluster(t)
	kc := filepath.Join(t.TempDir(), "kc")
	if err := c.Kubeconfig(kc, c.AdminConfig()); err != nil {
		t.Fatal(err)
	}
	kubectl, _ := tools.Path("kubectl")
	helmPath, _ := tools.Path("helm")
	run := func(args ...string) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kc)
		out, err := cmd.CombinedOutput()
		t.Logf("%v\n%s%v", args[1:], out, err)
	}
	run(kubectl, "apply", "--dry-run=server", "-f", "fsuser-csi.yaml")
	run(kubectl, "create", "ns", "fsuser-csi")
	for _, f := range []string{"fsuser-csi.yaml", "fsuser-csi-namespaces.yaml", "fsuser-csi-DANGER-cluster-wide-secrets.yaml"} {
		run(kubectl, "apply", "-f", f)
	}
	run(kubectl, "-n", "apps", "create", "rolebinding", "fsuser-csi", "--clusterrole=fsuser-csi-reader", "--serviceaccount=fsuser-csi:fsuser-csi")
	run(kubectl, "delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", "declare-references.fsuser.csi.io")
	run(kubectl, "delete", "clusterrolebinding,clusterrole", "fsuser-csi-node")
	run(kubectl, "delete", "--wait=false", "-f", "fsuser-csi-DANGER-cluster-wide-secrets.yaml")
	run(helmPath, "install", "fsuser-csi", "chart", "--namespace", "other", "--create-namespace")
	run(helmPath, "upgrade", "fsuser-csi", "chart", "--namespace", "other", "--set", "access=namespaces")
	run(kubectl, "get", "clusterrole,clusterrolebinding,ds,mutatingadmissionpolicy,csidriver", "-A", "-l", "app.kubernetes.io/name=fsuser-csi", "--show-labels")
	run(helmPath, "uninstall", "fsuser-csi", "--namespace", "other")
	run(kubectl, "get", "clusterrole,clusterrolebinding,ds,mutatingadmissionpolicy,csidriver", "-A", "-l", "app.kubernetes.io/name=fsuser-csi")
}

// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/status"
	"github.com/fsuser-csi/fsuser-csi/test/cluster"
)

// replica is an additional API server of the cluster. It reaches etcd through a port of its own.
type replica struct {
	t    *testing.T
	node *cluster.Node // the node on which it runs
	pid  string
}

const (
	replicaPort     = "16443"
	replicaEtcdPort = "12379"
)

// startReplica starts an API server with the arguments of the first one, and waits until it is ready.
func startReplica(t *testing.T) *replica {
	t.Helper()
	r := &replica{t: t, node: nodes[0]}
	const script = `
		first=$(tr '\0' ' ' </proc/$(pidof -s kube-apiserver)/cmdline)
		etcd=$(echo "$first" | sed 's,.*--etcd-servers=http://127.0.0.1:\([0-9]*\).*,\1,')
		iptables -t nat -I OUTPUT -p tcp -d 127.0.0.1 --dport ` + replicaEtcdPort + ` \
			-j DNAT --to-destination 127.0.0.1:$etcd || exit
		echo $$
		exec $(echo "$first" | sed s/:$etcd/:` + replicaEtcdPort + `/) --secure-port=` + replicaPort + ` \
			--endpoint-reconciler-type=none >/dev/null 2>&1`
	cmd, err := r.node.Command(suite, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("start another API server: %v", err)
	}
	r.pid = strings.TrimSpace(line)
	t.Cleanup(func() {
		r.stop()
		_ = cmd.Wait() // killed
		onNode(t, r.node, "iptables-save | grep -v "+replicaEtcdPort+" | iptables-restore")
	})
	onNode(t, r.node, "for i in $(seq 600); do kubectl --server=https://127.0.0.1:"+replicaPort+
		" get --raw /readyz >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1")
	return r
}

// stop kills the API server if it is running.
func (r *replica) stop() { onNode(r.t, r.node, "kill -KILL "+r.pid+" 2>&-; true") }

// lag cuts the API server off from etcd. The packets are lost, so the API server gets no error.
func (r *replica) lag() {
	onNode(r.t, r.node, "iptables -I OUTPUT -p tcp -m conntrack --ctorigdstport "+replicaEtcdPort+" -j DROP")
}

// cached returns the value of a Secret in the API server's cache.
func (r *replica) cached(namespace, name string) string {
	r.t.Helper()
	return onNode(r.t, r.node, "kubectl --server=https://127.0.0.1:"+replicaPort+" get --raw '/api/v1/namespaces/"+
		namespace+"/secrets/"+name+"?resourceVersion=0'")
}

// testReplica moves the driver of a node to an API server whose cache is older than the files. test/integration/driver
// tests this with each way to restart a driver (F-43 in docs/reliability.md).
func testReplica(s *spread) {
	node := nodes[1]
	r := startReplica(s.t)
	before := s.content()
	r.lag()
	s.change()
	s.current()

	const toReplica = ` -p tcp -d 10.96.0.1 --dport 443 -j DNAT --to-destination 10.0.0.1:` + replicaPort
	onNode(s.t, node, "iptables -t nat -I PREROUTING"+toReplica)
	back := func() { onNode(s.t, node, "iptables -t nat -D PREROUTING"+toReplica+" 2>&-; true") }
	defer back()
	begin := time.Now()
	old := driverOn(s.t, node)
	if err := client.CoreV1().Pods(driverNamespace).Delete(suite, old.Name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	driver := driverOn(s.t, node, string(old.UID)).Name
	s.awaitStale(driver, s.pods[node.Name()].name)
	if !strings.Contains(r.cached(s.name, "s"), base64.StdEncoding.EncodeToString([]byte(before))) {
		s.t.Error("the other API server does not lag")
	}
	s.current() // The files did not become older.
	s.t.Logf("the volume was stale, with its files, %.1f s after the restart of the driver", time.Since(begin).Seconds())

	back()
	r.stop()
	s.change()
	s.current()
	s.untouched()
}

// awaitStale waits until a pod of the driver reports the volume of a pod as stale.
func (s *spread) awaitStale(driver, pod string) {
	s.t.Helper()
	ctx, cancel := within(s.t, soon, "the volume of "+pod+" to be stale")
	defer cancel()
	for {
		var node status.Node
		text, err := kubectl(ctx, "", "-n", driverNamespace, "exec", driver, "--", "/fsuser-csi", "status", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(text), &node)
		}
		for _, v := range node.Volumes {
			if v.PodNamespace == s.name && v.PodName == pod && v.Stale != "" {
				s.t.Logf("stale: %s", v.Stale)
				return
			}
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			s.t.Fatalf("%v; the last status is %s, error %v", context.Cause(ctx), text, err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// fakeCluster is an API server with pods of the driver, which answer for their nodes.
type fakeCluster struct {
	t             *testing.T
	pods          []corev1.Pod
	withWebSocket bool

	mu       sync.Mutex
	answers  map[string]status.Node // by pod; a pod without an answer fails
	commands []string
}

// start returns the path of a kubeconfig whose namespace is "team".
func (c *fakeCluster) start() string {
	mux := http.NewServeMux()
	list := func(w http.ResponseWriter, r *http.Request) {
		pods := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		for _, pod := range c.pods {
			if namespace := r.PathValue("namespace"); (namespace == "" || namespace == pod.Namespace) &&
				r.FormValue("labelSelector") == driverLabel {
				pods.Items = append(pods.Items, pod)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(pods)
	}
	mux.HandleFunc("GET /api/v1/pods", list)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", list)
	mux.HandleFunc("/api/v1/namespaces/{namespace}/pods/{pod}/exec", c.exec)
	server := httptest.NewServer(mux)
	c.t.Cleanup(server.Close)
	path := filepath.Join(c.t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
"clusters": [{"name": "c", "cluster": {"server": %q}}],
"contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "team"}},
{"name": "other", "context": {"cluster": "c", "namespace": "other"}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *fakeCluster) exec(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	c.mu.Lock()
	c.commands = append(c.commands, query.Get("container")+" "+strings.Join(query["command"], " "))
	c.mu.Unlock()
	switch isWebSocket := wsstream.IsWebSocketRequest(r); {
	case isWebSocket && !c.withWebSocket:
		http.Error(w, "this API server knows no WebSocket", http.StatusBadRequest)
	case isWebSocket:
		c.execWebSocket(w, r)
	default:
		c.execSPDY(w, r)
	}
}

func (c *fakeCluster) execWebSocket(w http.ResponseWriter, r *http.Request) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{"v5.channel.k8s.io": {Binary: true,
		Channels: []wsstream.ChannelType{
			wsstream.ReadChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.ReadChannel,
		}}})
	_, streams, err := conn.Open(w, r)
	if err != nil {
		c.t.Errorf("open a WebSocket: %v", err)
		return
	}
	defer conn.Close()
	c.answer(r.PathValue("pod"), streams[1], streams[2], streams[3])
}

func (c *fakeCluster) execSPDY(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		c.t.Errorf("agree on a protocol: %v", err)
		return
	}
	opened := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
		opened <- stream
		return nil
	})
	if conn == nil {
		c.t.Error("no upgrade to SPDY")
		return
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for range 3 {
		select {
		case stream := <-opened:
			streams[stream.Headers().Get(corev1.StreamType)] = stream
		case <-conn.CloseChan():
			c.t.Error("the client closed the connection")
			return
		}
	}
	c.answer(r.PathValue("pod"), streams[corev1.StreamTypeStdout], streams[corev1.StreamTypeStderr],
		streams[corev1.StreamTypeError])
	for _, stream := range streams {
		stream.Close()
	}
	<-conn.CloseChan()
}

// setAnswer sets the answer of one pod.
func (c *fakeCluster) setAnswer(pod string, node status.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[pod] = node
}

// answer does the same as the driver's status command.
func (c *fakeCluster) answer(pod string, stdout, stderr, result io.Writer) {
	c.mu.Lock()
	node, ok := c.answers[pod]
	c.mu.Unlock()
	if !ok {
		io.WriteString(stderr, "Error: ask the driver: connection refused\n")
		json.NewEncoder(result).Encode(metav1.Status{Status: metav1.StatusFailure,
			Message: "command terminated with non-zero exit code", Reason: "NonZeroExitCode",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: "1"}}}})
		return
	}
	json.NewEncoder(stdout).Encode(node)
	json.NewEncoder(result).Encode(metav1.Status{Status: metav1.StatusSuccess})
}

func driverPodOn(node, namespace, name string, phase corev1.PodPhase) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
}

func volumeOf(namespace, pod string) status.Volume {
	return status.Volume{PodNamespace: namespace, PodName: pod, Volume: "v", Object: "Secret/s", UID: 1000, GID: 5,
		Mode: "0400", ResourceVersion: "7", Refresh: "watch"}
}

func TestStatus(t *testing.T) {
	for _, withWebSocket := range []bool{true, false} {
		t.Run(fmt.Sprintf("with WebSocket: %v", withWebSocket), func(t *testing.T) {
			cluster := &fakeCluster{t: t, withWebSocket: withWebSocket,
				pods: []corev1.Pod{
					driverPodOn("node-2", "fsuser-csi", "driver-b", corev1.PodRunning),
					driverPodOn("node-1", "fsuser-csi", "driver-a", corev1.PodRunning),
					driverPodOn("node-3", "elsewhere", "driver-c", corev1.PodRunning),
					driverPodOn("node-4", "elsewhere", "driver-d", corev1.PodPending),
				},
				answers: map[string]status.Node{
					"driver-a": {
						Node: "node-1", Access: &status.Access{Ready: true},
						Volumes: []status.Volume{volumeOf("other", "x"), volumeOf("team", "web-1")},
					},
					"driver-b": {
						Node: "node-2", Access: &status.Access{Reason: "forbidden"}, Volumes: []status.Volume{volumeOf("team", "web-2")},
					},
				},
			}
			kubeconfig := cluster.start()
			const (
				header = "NODE    POD         VOLUME  OBJECT    OWNER   MODE  VERSION  REFRESHED  STATE\n"
				other  = "node-1  other/x     v       Secret/s  1000:5  0400  7        -          current\n"
				web1   = "node-1  team/web-1  v       Secret/s  1000:5  0400  7        -          current\n"
				web2   = "node-2  team/web-2  v       Secret/s  1000:5  0400  7        -          current\n"
				// The duration is the time since the zero time.
				refused = "node node-2: the driver's access has not worked for 2562047h47m16.854775807s: forbidden\n"
				silent  = "node node-3: pod elsewhere/driver-c: command terminated with exit code 1: " +
					"Error: ask the driver: connection refused\n" +
					"node node-4: pod elsewhere/driver-d: it is Pending, not Running\nError: 2 drivers of 4 did not answer\n"
			)
			narrow := func(table string) string {
				return strings.NewReplacer("other/x     ", "other/x  ", "POD         ", "POD      ").Replace(table)
			}
			for _, test := range []struct {
				args           string
				code           int
				stdout, stderr string
			}{
				{"-A", 1, refused + header + other + web1 + web2, silent},
				{"", 1, refused + header + web1 + web2, silent},
				{"--driver-namespace fsuser-csi", 0, refused + header + web1 + web2, ""},
				{"--driver-namespace fsuser-csi web-2", 0, refused + header + web2, ""},
				{"--driver-namespace fsuser-csi pod/web-2", 0, refused + header + web2, ""},
				{"--driver-namespace fsuser-csi -n other", 0, narrow(refused + header + other), ""},
				{"--driver-namespace fsuser-csi --context other", 0, narrow(refused + header + other), ""},
				{"--driver-namespace nowhere", 2, "",
					"Error: no pod has the label app.kubernetes.io/name=fsuser-csi: the driver is not installed, or not in " +
						"--driver-namespace\n"},
				{"-o yaml", 2, "", "Error: --output is \"yaml\"; it must be \"table\" or \"json\"\n"},
				{"--context nowhere", 2, "", "Error: context \"nowhere\" does not exist\n"},
			} {
				got := tool(t, t.TempDir(), "", append([]string{"status", "--kubeconfig", kubeconfig},
					strings.Fields(test.args)...)...)
				if got != (outcome{test.code, test.stdout, test.stderr}) {
					t.Errorf("status %s: %d\n%s%s\nwant %d\n%s%s", test.args, got.code, got.stdout, got.stderr, test.code, test.stdout,
						test.stderr)
				}
			}
			got := tool(t, t.TempDir(), "", "status", "--kubeconfig", kubeconfig, "--driver-namespace", "fsuser-csi",
				"-o", "json", "web-2")
			var nodes []status.Node
			if err := json.Unmarshal([]byte(got.stdout), &nodes); err != nil || len(nodes) != 2 ||
				nodes[0].Node != "node-1" || !nodes[0].Access.Ready || len(nodes[0].Volumes) != 0 ||
				nodes[1].Node != "node-2" || nodes[1].Access.Ready || len(nodes[1].Volumes) != 1 ||
				nodes[1].Volumes[0].PodName != "web-2" {
				t.Errorf("as JSON: %v\n%s%s", err, got.stdout, got.stderr)
			}
			cluster.mu.Lock()
			defer cluster.mu.Unlock()
			if commands := slices.Compact(slices.Clone(cluster.commands)); !slices.Equal(commands,
				[]string{"fsuser-csi /fsuser-csi status -o json"}) {
				t.Errorf("it ran %q", commands)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/kubelet/secret"

	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// kubelets are kubelet's own watch managers, one for each node, each with a client and a process of its own.
type kubelets struct {
	cluster *cluster
	nodes   []*kubeletNode
}

// kubeletNode is the process with the manager of a node.
type kubeletNode struct {
	task    kubeletTask
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	running bool
}

// kubeletTask is the input of the process.
type kubeletTask struct {
	Dir     string
	Node    int
	Pods    []*corev1.Pod
	Secrets []string
	// Watch is the longest duration of a watch, in place of kubelet's hour. With 0, kubelet's value stays.
	Watch time.Duration
}

// tenths splits the nodes into at most ten groups.
func (s size) tenths() [][]int {
	return slices.Collect(slices.Chunk(s.all(), max(1, s.nodes/10)))
}

func newKubelets(c *cluster, watch time.Duration) *kubelets {
	k := &kubelets{cluster: c}
	for _, node := range c.size.all() {
		task := kubeletTask{Dir: c.dir, Node: node, Pods: c.pods[node], Secrets: c.size.secrets(node), Watch: watch}
		k.nodes = append(k.nodes, &kubeletNode{task: task})
	}
	return k
}

func (k *kubelets) name() string { return kubeletName }

// start starts the managers. They watch nothing before watch.
func (k *kubelets) start(ctx context.Context) error {
	return k.each(k.cluster.size.all(), func(n *kubeletNode) error { return n.start(ctx) })
}

// restart kills managers and starts them again with their pods. Kubelet does not end its watches regularly either.
func (k *kubelets) restart(ctx context.Context, nodes []int) error {
	return k.each(nodes, func(n *kubeletNode) error {
		n.stop()
		if err := n.start(ctx); err != nil {
			return err
		}
		return n.ask(ctx, "watch", "")
	})
}

func (k *kubelets) each(nodes []int, f func(*kubeletNode) error) error {
	return lab.Concurrently(len(nodes), len(nodes), func(i int) error { return f(k.nodes[nodes[i]]) })
}

func (n *kubeletNode) start(ctx context.Context) (err error) {
	task, err := json.Marshal(n.task)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("%s/kubelet-%d.json", n.task.Dir, n.task.Node)
	if err := os.WriteFile(path, task, 0o600); err != nil {
		return err
	}
	n.cmd = lab.Self(roleKubelet, path)
	log, err := os.OpenFile(path+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd.Stderr = log
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	n.out = bufio.NewReader(out)
	if err := startClient(n.cmd); err != nil {
		return fmt.Errorf("start kubelet's manager: %w", err)
	}
	n.running = true
	return n.ask(ctx, "start", "")
}

// ask sends a command and waits for its answer. If ctx ends, it kills the process.
func (n *kubeletNode) ask(ctx context.Context, command, argument string) error {
	defer context.AfterFunc(ctx, func() { _ = n.cmd.Process.Kill() })()
	if _, err := fmt.Fprintf(n.in, "%s %s\n", command, argument); err != nil {
		return err
	}
	answer, err := n.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("kubelet's manager, command %s: %w", command, err)
	}
	if answer = strings.TrimSpace(answer); answer != "done" {
		return fmt.Errorf("kubelet's manager, command %s: %s", command, answer)
	}
	return nil
}

func (n *kubeletNode) stop() {
	if !n.running {
		return
	}
	n.running = false
	_ = n.cmd.Process.Signal(unix.SIGKILL) // This fails only if the process has ended.
	_ = n.cmd.Wait()                       // The process was killed.
}

// watch registers the pods and fetches their objects.
func (k *kubelets) watch(ctx context.Context) error {
	return k.each(k.cluster.size.all(), func(n *kubeletNode) error { return n.ask(ctx, "watch", "") })
}

// await waits until the managers have a version of some Secrets of each node.
func (k *kubelets) await(ctx context.Context, version int, secrets func(node int) []string) error {
	return k.each(k.cluster.size.all(), func(n *kubeletNode) error {
		return n.ask(ctx, "await", strconv.Itoa(version)+" "+strings.Join(secrets(n.task.Node), " "))
	})
}

func (k *kubelets) close() error {
	return k.each(k.cluster.size.all(), func(n *kubeletNode) error { n.stop(); return nil })
}

// serveKubelet is the main function of the process of a kubeletNode.
func serveKubelet(in io.Reader, out io.Writer, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var task kubeletTask
	if err := json.Unmarshal(content, &task); err != nil {
		return err
	}
	manager, err := newManager(task)
	if err != nil {
		return err
	}
	var watched atomic.Bool
	go visit(manager, task, &watched)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		err := error(nil)
		switch fields[0] {
		case "watch":
			err = watchPods(manager, task)
			watched.Store(true)
		case "await":
			err = awaitVersion(manager, fields[1], fields[2:])
		}
		if err == nil {
			err = errors.New("done")
		}
		fmt.Fprintln(out, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return nil
}

// newManager creates a client as cmd/kubelet/app does from the defaults of kubelet's configuration, and its manager.
func newManager(task kubeletTask) (secret.Manager, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeletConfig(task.Dir, task.Node))
	if err != nil {
		return nil, err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.QPS, config.Burst = 50, 100
	config.UserAgent = "kubelet/v1.37.2 (linux/amd64) kubernetes/0123456"
	if task.Watch > 0 {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return shorten{next, task.Watch} })
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return secret.NewWatchingSecretManager(client, syncFrequency), nil
}

// syncFrequency is the default of kubelet's configuration. Kubelet reads the objects of each pod at this interval.
const syncFrequency = time.Minute

// shorten replaces timeoutSeconds, so that watches end during a run of minutes.
type shorten struct {
	next  http.RoundTripper
	watch time.Duration
}

func (s shorten) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	if query.Get("timeoutSeconds") != "" {
		duration := s.watch/2 + rand.N(s.watch/2)
		query.Set("timeoutSeconds", strconv.Itoa(int(duration.Seconds())))
		request = request.Clone(request.Context())
		request.URL.RawQuery = query.Encode()
	}
	return s.next.RoundTrip(request)
}

// watchPods registers the pods and fetches the objects as the volume manager does.
func watchPods(manager secret.Manager, task kubeletTask) error {
	for _, pod := range task.Pods {
		manager.RegisterPod(pod)
	}
	return fetch(manager, task.Secrets)
}

func fetch(manager secret.Manager, names []string) error {
	const patience = 2 * time.Minute
	start := time.Now()
	for _, name := range names {
		for {
			_, err := manager.GetSecret(namespace, name)
			if err == nil {
				break
			}
			if time.Since(start) > patience {
				return err
			}
		}
	}
	return nil
}

// visit reads each object once per syncFrequency, as kubelet's volume manager does. Otherwise the manager would end the
// watch after five minutes.
func visit(manager secret.Manager, task kubeletTask, watched *atomic.Bool) {
	for range time.Tick(syncFrequency) {
		if !watched.Load() {
			continue
		}
		for _, name := range task.Secrets {
			_, _ = manager.GetSecret(namespace, name) // During an outage, the manager has the old object.
		}
	}
}

func awaitVersion(manager secret.Manager, version string, names []string) error {
	start := time.Now()
	for _, name := range names {
		for {
			object, err := manager.GetSecret(namespace, name)
			if err == nil && string(object.Data[versionKey]) == version {
				break
			}
			if time.Since(start) > patience {
				return fmt.Errorf("waited %v for version %s of %s: %w", patience, version, name, err)
			}
			time.Sleep(pollInterval)
		}
	}
	return nil
}

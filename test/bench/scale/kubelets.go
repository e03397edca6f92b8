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
)

// kubelets are kubelet's own watch managers, one for each node with a client of its own, in processes of one tenth of
// the nodes each.
type kubelets struct {
	cluster *cluster
	groups  []*kubeletGroup
}

// kubeletGroup is a process with the managers of some nodes.
type kubeletGroup struct {
	task    kubeletTask
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	running bool
}

// kubeletTask tells the process what to do.
type kubeletTask struct {
	Dir     string
	Nodes   []int
	Pods    [][]*corev1.Pod
	Secrets [][]string
	// Watch is the longest duration of a watch in place of kubelet's, which is an hour. It is 0 to keep kubelet's.
	Watch time.Duration
}

// tenths splits the nodes into at most ten groups.
func (s size) tenths() (groups [][]int) {
	nodes := make([]int, s.nodes)
	for i := range nodes {
		nodes[i] = i
	}
	return slices.Collect(slices.Chunk(nodes, max(1, s.nodes/10)))
}

func newKubelets(c *cluster, watch time.Duration) *kubelets {
	k := &kubelets{cluster: c}
	for _, nodes := range c.size.tenths() {
		task := kubeletTask{Dir: c.dir, Nodes: nodes, Watch: watch}
		for _, node := range nodes {
			task.Pods = append(task.Pods, c.pods[node])
			task.Secrets = append(task.Secrets, c.size.secrets(node))
		}
		k.groups = append(k.groups, &kubeletGroup{task: task})
	}
	return k
}

func (k *kubelets) name() string { return kubeletName }

// ofNodes are the groups of some nodes: nodes come and go in whole groups.
func (k *kubelets) ofNodes(nodes []int) (groups []*kubeletGroup) {
	for _, g := range k.groups {
		if slices.Contains(nodes, g.task.Nodes[0]) {
			groups = append(groups, g)
		}
	}
	return groups
}

// start starts the managers. They watch nothing before watch.
func (k *kubelets) start(ctx context.Context) error {
	return eachGroup(k.groups, func(g *kubeletGroup) error { return g.start(ctx) })
}

// restart kills managers and starts them again with their pods. Kubelet does not end its watches in order, either.
func (k *kubelets) restart(ctx context.Context, nodes []int) error {
	return eachGroup(k.ofNodes(nodes), func(g *kubeletGroup) error {
		g.stop()
		if err := g.start(ctx); err != nil {
			return err
		}
		return g.ask(ctx, "watch", "")
	})
}

func eachGroup(groups []*kubeletGroup, f func(*kubeletGroup) error) error {
	return concurrently(len(groups), len(groups), func(i int) error { return f(groups[i]) })
}

func (g *kubeletGroup) start(ctx context.Context) (err error) {
	task, err := json.Marshal(g.task)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("%s/kubelets-%d.json", g.task.Dir, g.task.Nodes[0])
	if err := os.WriteFile(path, task, 0o600); err != nil {
		return err
	}
	g.cmd = self(roleKubelets, path)
	log, err := os.OpenFile(path+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	g.cmd.Stderr = log
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	g.out = bufio.NewReader(out)
	if err := g.cmd.Start(); err != nil {
		return fmt.Errorf("start kubelet's managers: %w", err)
	}
	g.running = true
	return g.ask(ctx, "start", "")
}

// ask sends a command and waits for its answer. The process dies if ctx ends.
func (g *kubeletGroup) ask(ctx context.Context, command, argument string) error {
	defer context.AfterFunc(ctx, func() { _ = g.cmd.Process.Kill() })()
	if _, err := fmt.Fprintf(g.in, "%s %s\n", command, argument); err != nil {
		return err
	}
	answer, err := g.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("kubelet's managers, command %s: %w", command, err)
	}
	if answer = strings.TrimSpace(answer); answer != "done" {
		return fmt.Errorf("kubelet's managers, command %s: %s", command, answer)
	}
	return nil
}

func (g *kubeletGroup) stop() {
	if !g.running {
		return
	}
	g.running = false
	_ = g.cmd.Process.Signal(unix.SIGKILL) // fails only if the process has ended
	_ = g.cmd.Wait()                       // the process was killed
}

// watch registers the pods and fetches their objects.
func (k *kubelets) watch(ctx context.Context) error {
	return eachGroup(k.groups, func(g *kubeletGroup) error { return g.ask(ctx, "watch", "") })
}

// await waits until the managers have a version of some Secrets of each node.
func (k *kubelets) await(ctx context.Context, version int, secrets func(node int) []string) error {
	return eachGroup(k.groups, func(g *kubeletGroup) error {
		var names []string
		for _, node := range g.task.Nodes {
			names = append(names, strings.Join(secrets(node), ","))
		}
		return g.ask(ctx, "await", strconv.Itoa(version)+" "+strings.Join(names, " "))
	})
}

func (k *kubelets) close() error {
	return eachGroup(k.groups, func(g *kubeletGroup) error { g.stop(); return nil })
}

// serveKubelets is the process of a kubeletGroup.
func serveKubelets(in io.Reader, out io.Writer, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var task kubeletTask
	if err := json.Unmarshal(content, &task); err != nil {
		return err
	}
	var managers []secret.Manager
	for _, node := range task.Nodes {
		manager, err := newManager(task, node)
		if err != nil {
			return err
		}
		managers = append(managers, manager)
	}
	var watched atomic.Bool
	go visit(managers, task, &watched)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		err := error(nil)
		switch fields[0] {
		case "watch":
			err = watchPods(managers, task)
			watched.Store(true)
		case "await":
			err = awaitVersions(managers, fields[1], fields[2:])
		}
		if err == nil {
			err = errors.New("done")
		}
		fmt.Fprintln(out, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return nil
}

// newManager makes a client as cmd/kubelet/app does from the defaults of kubelet's configuration, and its manager.
func newManager(task kubeletTask, node int) (secret.Manager, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeletConfig(task.Dir, node))
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

// syncFrequency is the default of kubelet's configuration. Kubelet reads the objects of each pod that often.
const syncFrequency = time.Minute

// shorten replaces timeoutSeconds, so that a run of minutes sees watches end.
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

// watchPods registers the pods of each node and fetches the objects as the volume manager does.
func watchPods(managers []secret.Manager, task kubeletTask) error {
	return concurrently(len(managers), len(managers), func(i int) error {
		for _, pod := range task.Pods[i] {
			managers[i].RegisterPod(pod)
		}
		return fetch(managers[i], task.Secrets[i])
	})
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
func visit(managers []secret.Manager, task kubeletTask, watched *atomic.Bool) {
	for range time.Tick(syncFrequency) {
		if !watched.Load() {
			continue
		}
		for i, manager := range managers {
			for _, name := range task.Secrets[i] {
				_, _ = manager.GetSecret(namespace, name) // during an outage the manager has the old object
			}
		}
	}
}

func awaitVersions(managers []secret.Manager, version string, names []string) error {
	return concurrently(len(managers), len(managers), func(i int) error {
		start := time.Now()
		for _, name := range strings.Split(names[i], ",") {
			for {
				object, err := managers[i].GetSecret(namespace, name)
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
	})
}

// SPDX-License-Identifier: Apache-2.0

//go:build soak

package torture

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
	"github.com/fsuser-csi/fsuser-csi/test/soak"
)

const (
	// heldVolumes is the number of volumes that exist from the beginning to the end.
	heldVolumes = 300
	// passing is the number of pods with a short life at a time.
	passing = 5
	// watchDuration is a 24th of an hour, which is the default maximum for a watch.
	watchDuration = 150 * time.Second
	// tokenLife is the shortest life of a token that the API server allows.
	tokenLife = 10 * time.Minute
)

// day is a run with the events of a day, 24 times as often.
type day struct {
	*harness
	run     *soak.Run
	started time.Time
	audit   *auditLog
	readers *readers
	// driverPod is the driver's own pod, and tokenDir has the file with the pod's token.
	driverPod *corev1.Pod
	tokenDir  string
	// objects are those of the held volumes. updates is the number of their updates, arrivals the number of pods that came
	// later, and republished the number of volumes that kubelet has republished.
	objects                        []string
	updates, arrivals, republished int
	// passers are the pods with a short life.
	passers []mounted
	// connections has the driver's connections to the API server so far, by local port.
	connections map[string]bool
	refreshes   []refresh
	samples     samples
	// counts has the number of times of each activity, and failures the number of failed calls of kubelet.
	counts   map[string]int
	failures atomic.Int64
}

// TestDay is "make soak". FSUSER_SOAK is its duration.
func TestDay(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("FSUSER_SOAK"))
	if err != nil {
		t.Fatalf("FSUSER_SOAK: %v", err)
	}
	d := newDay(t, length)
	before := measure(t, d.driver)
	d.begin()
	d.live()
	d.count()
	d.end(before)
	d.write()
}

// newDay starts an API server and a driver without volumes.
func newDay(t *testing.T, length time.Duration) *day {
	d := &day{
		run: &soak.Run{Volumes: heldVolumes, Length: length, WarmUp: length / 10}, counts: map[string]int{},
		connections: map[string]bool{}, tokenDir: t.TempDir(),
	}
	c := d.startCluster(t)
	testkit.NothingLeft(t)
	d.harness = newHarnessOf(t, c, c.plain, "--collect-interval=1m", fmt.Sprint("--watch-duration=", watchDuration))
	d.driver.Stop()
	d.driver.Env = []string{
		"POD_NAMESPACE=" + d.driverPod.Namespace, "POD_NAME=" + d.driverPod.Name,
		"POD_UID=" + string(d.driverPod.UID),
	}
	d.driver.StartAgain()
	failed := d.kubelet.Failed
	d.kubelet.Failed = func(call string, err error) {
		d.failures.Add(1)
		failed(call, err)
	}
	d.readers = startReaders(t, d.driver.Root, 200*time.Millisecond)
	return d
}

// startCluster starts an API server that logs the requests of the driver, and creates the driver's pod and token.
func (d *day) startCluster(t *testing.T) *cluster {
	var flags []string
	d.audit, flags = newAuditLog(t)
	cp := controlplane.StartForTest(t, controlplane.Options{ExtraArgs: append(flags, "--goaway-chance=0.001")})
	config := cp.AdminConfig()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, plain: testkit.BuildDriverWithoutRace(t), controlPlane: cp, client: client,
		access: "node", namespace: "day", kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"),
	}
	d.harness = &harness{t: t, cluster: c}
	ctx, cancel := bounded(patience, "let the driver act as its node")
	defer cancel()
	d.must(nodeaccess.Install(ctx, cp, client, c.namespace))
	d.driverPod, err = nodeaccess.CreateDriverPod(ctx, client, nodeaccess.ServiceAccount)
	d.must(err)
	d.rotateToken()
	config.BearerToken, config.BearerTokenFile = "", filepath.Join(d.tokenDir, "token")
	d.must(cp.Kubeconfig(c.kubeconfig, config))
	return c
}

// begin publishes the held volumes. The first versions of the objects differ, so that the sum of their lengths stays
// the same.
func (d *day) begin() {
	for i := range heldVolumes {
		object := fmt.Sprint("secret-", i)
		if i%3 == 2 {
			object = fmt.Sprint("map-", i)
		}
		from := byName
		if i%10 == 9 {
			from = byVolume
		}
		d.versions[object] = 20 * i
		d.set(object)
		d.want(anOwner(inLinks(from)), object)
		d.objects = append(d.objects, object)
	}
	d.converge("publish the volumes")
	d.check("after the volumes were published")
	d.started = time.Now()
	d.samples = newSamples()
	d.audit.read(d.t)
	d.audit.requests, d.audit.renewals = 0, 0
	clear(d.audit.refused)
	d.samples.at = d.started
}

// activity is an event that repeats.
type activity struct {
	what        string
	next, every time.Duration
	do          func()
	// day is the number of times in a day.
	day string
}

func (d *day) activities() []activity {
	part := d.run.Length / 60
	return []activity{
		{"updates of an object", 0, 500 * time.Millisecond, d.update, "each object once an hour"},
		{"pods that came, and went after 12 s", 0, 2500 * time.Millisecond, d.arrive, "one a minute"},
		{"publishes of a volume again, by kubelet", 0, 200 * time.Millisecond, d.republish,
			"each volume once a minute; not compressed"},
		{"compactions of etcd", 0, 12500 * time.Millisecond, d.compact, "one in 5 minutes"},
		{"rotations of the driver's token", 2 * time.Minute, 2 * time.Minute, d.rotateToken,
			"one in 48 minutes, after four fifths of the token's hour"},
		{"rotations of the API server's certificate", 6 * part, 15 * part, d.rotateCertificate, "one in 6 hours"},
		{"restarts of the API server", 3 * part, 20 * part, d.restartAPIServer, "one in 8 hours"},
		{"samples", 0, 5 * time.Second, d.sample, ""},
	}
}

// live performs each activity at its times until the end. It does not catch up on late activities.
func (d *day) live() {
	activities := d.activities()
	for !d.t.Failed() {
		slices.SortFunc(activities, func(a, b activity) int { return cmp.Compare(a.next, b.next) })
		a := &activities[0]
		if max(a.next, time.Since(d.started)) > d.run.Length {
			return
		}
		time.Sleep(time.Until(d.started.Add(a.next)))
		a.do()
		d.counts[a.what]++
		a.next = max(a.next+a.every, time.Since(d.started)-a.every)
		d.readers.check()
	}
}

// update changes the next object, and waits until each of its volumes shows the new version.
func (d *day) update() {
	object := d.objects[d.updates%len(d.objects)]
	d.updates++
	begun := time.Now()
	d.set(object)
	updated := time.Now()
	d.await(object)
	d.refreshes = append(d.refreshes, refresh{update: updated.Sub(begun), shown: time.Since(updated)})
}

// await waits until the volumes of an object show its current version. At first it reads without a pause, so that the
// measured time is exact.
func (d *day) await(object string) {
	// After an outage, the watches start within 30 s.
	ctx, cancel := bounded(2*time.Minute, "show the new version of "+object)
	defer cancel()
	for _, m := range d.volumes {
		if m.object != object {
			continue
		}
		shown := func() bool {
			version, err := readVolume(d.target(m))
			return err == nil && version == d.versions[object]
		}
		for begun := time.Now(); !shown() && time.Since(begun) < 5*time.Millisecond; {
		}
		d.must(d.awaitPresent(ctx, m))
	}
}

// arrive adds a pod with a held object or with one of its own, and removes the oldest pod.
func (d *day) arrive() {
	object, from := fmt.Sprint("passing-", d.arrivals), []origin{byName, byName, byVolume, byRequest}[d.arrivals%4]
	if d.arrivals%4 == 0 {
		object = d.objects[d.arrivals/4%len(d.objects)]
	} else {
		d.set(object)
	}
	d.arrivals++
	m := d.want(anOwner(inLinks(from)), object)
	d.passers = append(d.passers, m)
	d.settle("publish the volume of a pod that came")
	d.set(object)
	d.await(object)
	if len(d.passers) > passing {
		d.depart()
	}
}

// depart removes the oldest pod.
func (d *day) depart() {
	m := d.passers[0]
	d.passers = d.passers[1:]
	d.dropPod(m)
	d.settle("unpublish the volume of a pod that went")
	if strings.HasPrefix(m.object, "passing-") {
		d.cluster.delete(m.object)
		delete(d.versions, m.object)
	}
}

// republish makes kubelet republish the next volume, as the CSIDriver's requiresRepublish requires.
func (d *day) republish() {
	m := d.volumes[d.republished%len(d.volumes)]
	d.republished++
	var secrets map[string]string
	if m.owned.from == byRequest {
		secrets = data(d.versions[m.object])
	}
	d.kubelet.Push(m.pod, m.name(), secrets)
	d.settle("publish a volume again")
}

func (d *day) compact() {
	ctx, cancel := bounded(patience, "compact etcd")
	defer cancel()
	d.must(d.cluster.controlPlane.Compact(ctx))
}

// rotateToken writes a new token of the driver's pod, with the layout of kubelet's projected volume.
func (d *day) rotateToken() {
	ctx, cancel := bounded(patience, "rotate the driver's token")
	defer cancel()
	token, err := nodeaccess.Token(ctx, d.cluster.client, d.driverPod, tokenLife)
	d.must(err)
	dir, err := os.Open(d.tokenDir)
	d.must(err)
	defer dir.Close()
	_, err = projector.Write(int(dir.Fd()), projector.Payload{
		Files: []projector.File{{Path: "token", Data: []byte(token), Mode: 0o600}}, DirMode: 0o755,
	})
	d.must(err)
	d.happened(soak.Token)
}

// rotateCertificate rotates the certificate of the API server. The driver's connections must continue.
func (d *day) rotateCertificate() {
	ctx, cancel := bounded(patience, "rotate the API server's certificate")
	defer cancel()
	before := d.connected()
	d.must(d.cluster.controlPlane.RotateServingCertificate(ctx))
	after := d.connected()
	for _, port := range before {
		if !slices.Contains(after, port) {
			d.t.Errorf("the driver's connection from port %s ended with the rotation of the certificate", port)
		}
	}
	d.happened(soak.Certificate)
}

// restartAPIServer kills the API server, and starts it again.
func (d *day) restartAPIServer() {
	ctx, cancel := bounded(2*time.Minute, "restart the API server")
	defer cancel()
	d.must(d.cluster.controlPlane.StopAPIServer(ctx))
	d.audit.read(d.t)
	clear(d.audit.open)
	d.happened(soak.Restart)
	d.must(d.cluster.controlPlane.StartAPIServer(ctx))
}

func (d *day) happened(kind soak.EventKind) {
	if !d.started.IsZero() {
		d.run.Events = append(d.run.Events, soak.Event{Kind: kind, At: time.Since(d.started)})
	}
}

// count adds the numbers of the activities to the run.
func (d *day) count() {
	d.audit.read(d.t)
	add := func(what string, n int, day string) {
		d.run.Counts = append(d.run.Counts, soak.Count{What: what, N: n, Day: day})
	}
	for _, a := range d.activities() {
		if a.day != "" {
			add(a.what, d.counts[a.what], a.day)
		}
	}
	add("renewals of a watch after its time", d.audit.renewals, "each watch after 30 to 60 minutes")
	add("requests of the driver to the API server, all", d.audit.requests, "")
	for _, code := range slices.Sorted(maps.Keys(d.audit.refused)) {
		add(fmt.Sprintf("requests of the driver that got status %d", code), d.audit.refused[code], "")
	}
	add("connections of the driver to the API server", len(d.connections), "")
	add("calls of kubelet that failed, and were made again", int(d.failures.Load()), "")
}

// end removes all pods, and checks that nothing is left.
func (d *day) end(before usage) {
	for len(d.volumes) > 0 {
		d.drop()
	}
	d.settle("unpublish everything")
	d.check("at the end")
	testkit.Eventually(d.t, patience, "the end of all watches", func() bool {
		d.audit.read(d.t)
		return len(d.audit.open) == 0
	})
	d.asBefore(before)
	if d.deaths > 0 {
		d.t.Errorf("the driver ended %d times", d.deaths)
	}
	d.run.Counts = append(d.run.Counts, soak.Count{What: "times that a reader read a volume", N: d.readers.stop()})
}

// asBefore waits until the driver has no more than before the first volume, except for a connection to the API server.
// The driver closes connections that it has not used for 90 s.
func (d *day) asBefore(before usage) {
	ctx, cancel := bounded(3*time.Minute, "let go of what the volumes needed")
	defer cancel()
	for {
		after := measure(d.t, d.driver)
		if after.goroutines <= before.goroutines+3 && after.descriptors <= before.descriptors+1 &&
			after.mounts == 0 && after.records == 0 {
			d.t.Logf("before the first volume: %v; after the last: %v", before, after)
			return
		}
		select {
		case <-ctx.Done():
			d.t.Fatalf("%v: before the first volume: %v; after the last: %v", context.Cause(ctx), before, after)
		case <-time.After(time.Second):
		}
	}
}

// write judges the run, and writes the page and the graph: into docs if the result is good, and in any case, with the
// samples, into .cache/soak.
func (d *day) write() {
	var err error
	d.run.Machine, err = reliability.ThisMachine(d.started)
	d.must(err)
	d.run.Series = d.samples.series()
	for _, problem := range d.run.Judge() {
		if d.run.Length < soak.Shortest {
			d.t.Logf("not counted, because the run is short: %v", problem)
			continue
		}
		d.t.Error(problem)
	}
	root, err := tools.Repository()
	d.must(err)
	cache := filepath.Join(root, ".cache", "soak")
	d.must(os.MkdirAll(cache, 0o755))
	all, err := json.Marshal(d.run)
	d.must(err)
	d.must(os.WriteFile(filepath.Join(cache, "run.json"), all, 0o644))
	d.writePage(cache)
	if !d.t.Failed() && d.run.Length >= soak.Shortest {
		d.writePage(filepath.Join(root, "docs"))
	}
}

func (d *day) writePage(dir string) {
	for name, write := range map[string]func(io.Writer) error{
		"soak.md":  d.run.WritePage,
		"soak.svg": func(w io.Writer) error { return soak.WriteGraph(w, d.run) },
	} {
		var file bytes.Buffer
		d.must(write(&file))
		d.must(os.WriteFile(filepath.Join(dir, name), file.Bytes(), 0o644))
	}
	d.t.Logf("wrote %s", filepath.Join(dir, "soak.md"))
}

// connected returns the local ports of the driver's connections to the API server.
func (d *day) connected() (ports []string) {
	_, apiPort, _ := strings.Cut(d.cluster.controlPlane.APIServerAddress(), ":")
	var number int
	_, err := fmt.Sscan(apiPort, &number)
	d.must(err)
	remote := fmt.Sprintf(":%04X", number)
	sockets := map[string]bool{}
	dir := fmt.Sprintf("/proc/%d/fd", d.driver.PID())
	descriptors, err := list(dir)
	d.must(err)
	for _, fd := range descriptors {
		to, _ := os.Readlink(filepath.Join(dir, fd)) // The descriptor may be closed already.
		sockets[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
	}
	for _, file := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile("/proc/net/" + file)
		d.must(err)
		for line := range strings.Lines(string(table)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			const established = "01"
			f := strings.Fields(line)
			if f[3] == established && strings.HasSuffix(f[2], remote) && sockets[f[9]] {
				_, port, _ := strings.Cut(f[1], ":")
				ports = append(ports, port)
			}
		}
	}
	return ports
}

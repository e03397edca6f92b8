// SPDX-License-Identifier: Apache-2.0

//go:build alerts

package alerts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

const (
	job = "fsuser-csi"
	// factor divides all durations of the rules, so that a second takes the place of a minute. The thresholds stay.
	factor = 60
	// interval is the interval of scrapes and of evaluations. It takes the place of 30 seconds.
	interval = 500 * time.Millisecond
	// patience is the longest wait for an alert. The slowest alert takes 65 seconds: a volume must be stale for a minute.
	patience = 4 * time.Minute
)

// prometheus is a real server with the rules of the chart, whose durations are divided by factor.
type prometheus struct {
	promv1.API
	dir string

	mu      sync.Mutex
	targets map[string]string // by node
}

func startPrometheus(t *testing.T) *prometheus {
	t.Helper()
	path, err := tools.Path(tools.Newest(), "prometheus")
	if err != nil {
		t.Fatal(err)
	}
	address := testkit.FreeAddress(t)
	client, err := api.NewClient(api.Config{Address: "http://" + address})
	if err != nil {
		t.Fatal(err)
	}
	p := &prometheus{API: promv1.NewAPI(client), dir: t.TempDir(), targets: map[string]string{}}
	p.write(t, "alerts.yaml", shortened(t))
	p.write(t, "targets.json", []byte("[]"))
	p.write(t, "prometheus.yml", fmt.Appendf(nil, `
global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}
rule_files: [alerts.yaml]
scrape_configs:
- job_name: %[2]s
  file_sd_configs:
  - {files: [targets.json], refresh_interval: 1s}
`, interval, job))
	p.run(t, path, "--config.file="+filepath.Join(p.dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(p.dir, "data"), "--web.listen-address="+address)
	testkit.Eventually(t, patience, "Prometheus to answer", func() bool {
		_, err := p.Runtimeinfo(t.Context())
		return err == nil
	})
	return p
}

// run starts the server, which ends with t. If t failed, the server's log is printed.
func (p *prometheus) run(t *testing.T, path string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("Prometheus had ended: %v", err)
		}
		cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("log of Prometheus (%v):\n%s", err, text)
		}
	})
}

// write replaces a file, so that Prometheus never reads a part of it.
func (p *prometheus) write(t *testing.T, name string, content []byte) {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// scrape makes the address the target of a node, and waits for the first scrape.
func (p *prometheus) scrape(t *testing.T, node, address string) {
	t.Helper()
	p.set(t, func() { p.targets[node] = address })
	testkit.Eventually(t, patience, "the first scrape of "+node, func() bool {
		return len(p.query(t, fmt.Sprintf("up{node=%q} == 1", node))) == 1
	})
}

// forget removes all targets.
func (p *prometheus) forget(t *testing.T) {
	t.Helper()
	p.set(t, func() { clear(p.targets) })
}

func (p *prometheus) set(t *testing.T, change func()) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for node, address := range p.targets {
		groups = append(groups, group{[]string{address}, map[string]string{"node": node}})
	}
	content, err := json.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "targets.json", content)
}

// query returns the samples of an instant query. It first waits for an interval, after which there can be new samples.
func (p *prometheus) query(t *testing.T, query string) model.Vector {
	t.Helper()
	time.Sleep(interval)
	value, _, _, err := p.Query(t.Context(), query, time.Now())
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	vector, ok := value.(model.Vector)
	if !ok {
		t.Fatalf("%s returns a %s", query, value.Type())
	}
	return vector
}

// awaitAlert waits until an alert with these labels fires, and checks its annotations.
func (p *prometheus) awaitAlert(t *testing.T, labels model.LabelSet) {
	t.Helper()
	var alert promv1.Alert
	testkit.Eventually(t, patience, fmt.Sprintf("the alert %v to fire", labels), func() (fires bool) {
		alert, fires = p.firing(t, labels)
		return fires
	})
	for _, annotation := range []model.LabelName{"summary", "description", "runbook_url"} {
		text := string(alert.Annotations[annotation])
		if text == "" || strings.Contains(text, "<no value>") || strings.Contains(text, "error") {
			t.Errorf("%v: %s is %q", labels, annotation, text)
		}
	}
	for name, value := range labels {
		if name != model.AlertNameLabel && !strings.Contains(string(alert.Annotations["description"]), string(value)) {
			t.Errorf("%v: the description %q does not have the %s", labels, alert.Annotations["description"], name)
		}
	}
}

func (p *prometheus) awaitEnd(t *testing.T, labels model.LabelSet) {
	t.Helper()
	testkit.Eventually(t, patience, fmt.Sprintf("the alert %v to clear", labels), func() bool {
		_, fires := p.firing(t, labels)
		return !fires
	})
}

// firing waits for an interval, and returns the alert with these labels if it fires.
func (p *prometheus) firing(t *testing.T, labels model.LabelSet) (promv1.Alert, bool) {
	t.Helper()
	time.Sleep(interval)
	alerts, err := p.Alerts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts.Alerts {
		if a.State == promv1.AlertStateFiring && hasLabels(a.Labels, labels) {
			return a, true
		}
	}
	return promv1.Alert{}, false
}

func hasLabels(all, some model.LabelSet) bool {
	for name, value := range some {
		if all[name] != value {
			return false
		}
	}
	return true
}

// shortened returns the rules with their durations divided by factor.
func shortened(t *testing.T) []byte {
	t.Helper()
	rules := readRules(t)
	n := 0
	short := func(duration string) string {
		n++
		d, err := model.ParseDuration(duration)
		if err != nil {
			t.Fatal(err)
		}
		return (d / factor).String()
	}
	inExpr := regexp.MustCompile(`(\[|offset )(\d+[smhd])`)
	for _, group := range rules.Groups {
		for i := range group.Rules {
			r := &group.Rules[i]
			if r.For != "" {
				r.For = short(r.For)
			}
			r.Expr = inExpr.ReplaceAllStringFunc(r.Expr, func(found string) string {
				parts := inExpr.FindStringSubmatch(found)
				return parts[1] + short(parts[2])
			})
		}
	}
	if n < 10 {
		t.Fatalf("%s has %d durations; has their form changed?", rulesFile, n)
	}
	content, err := yaml.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

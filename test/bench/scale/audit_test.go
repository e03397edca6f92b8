// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// at returns a time of the tests, in milliseconds.
func at(ms int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, ms*int(time.Millisecond), time.UTC)
}

func TestOverlap(t *testing.T) {
	for name, test := range map[string]struct {
		intervals [][2]int
		want      int
	}{
		"none":                                {nil, 0},
		"one":                                 {[][2]int{{0, 1}}, 1},
		"an empty one":                        {[][2]int{{5, 5}}, 0},
		"one begins when another ends":        {[][2]int{{0, 5}, {5, 9}}, 1},
		"one begins a moment before":          {[][2]int{{0, 5}, {4, 9}}, 2},
		"one inside another":                  {[][2]int{{0, 9}, {3, 4}, {6, 7}}, 2},
		"the same three times":                {[][2]int{{0, 9}, {0, 9}, {0, 9}}, 3},
		"unordered, and the peak in between":  {[][2]int{{6, 9}, {0, 3}, {2, 7}, {1, 3}, {2, 3}}, 4},
		"many in a row, at most two together": {[][2]int{{0, 2}, {1, 3}, {2, 4}, {3, 5}, {4, 6}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var intervals []interval
			for _, i := range test.intervals {
				intervals = append(intervals, interval{at(i[0]), at(i[1])})
			}
			if got := overlap(intervals); got != test.want {
				t.Errorf("overlap is %d, want %d", got, test.want)
			}
		})
	}
}

// stage returns a line of an audit log.
func stage(id, stage string, ms int, rest string) string {
	return fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":%q,"stage":%q,`+
		`"requestURI":"/api/v1/namespaces/n/secrets?fieldSelector=metadata.name%%3Ds&timeoutSeconds=1800&watch=true",`+
		`"verb":"watch","objectRef":{"resource":"secrets","namespace":"n","name":"s-%s","apiVersion":"v1"},%s`+
		`"requestReceivedTimestamp":"2026-01-01T00:00:00.000000Z","stageTimestamp":"2026-01-01T00:00:00.%03d000Z"}`+"\n",
		id, stage, id, rest, ms)
}

const (
	kubeletUser  = `"user":{"username":"system:node:node-1","groups":["system:nodes"]},`
	driverUser   = `"user":{"username":"system:serviceaccount:a:b","extra":{"` + tokenNode + `":["node-2"]}},`
	impersonated = `"user":{"username":"system:serviceaccount:a:b"},` +
		`"impersonatedUser":{"username":"system:node:node-3","groups":["system:nodes"]},`
	ok      = `"responseStatus":{"metadata":{},"code":200},`
	tooMany = `"responseStatus":{"metadata":{},"code":429},`
)

func TestAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write(stage("old", "RequestReceived", 0, kubeletUser))
	log := auditLog{path: path}
	if err := log.mark(); err != nil {
		t.Fatal(err)
	}
	write(stage("old", "ResponseComplete", 1, kubeletUser+ok) +
		stage("a", "RequestReceived", 0, driverUser) +
		stage("b", "RequestReceived", 0, kubeletUser))
	later := stage("a", "ResponseStarted", 5, impersonated+ok)
	write(later[:40])
	read := func() requestLog {
		t.Helper()
		all, err := log.requests()
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	all := read()
	if len(all) != 2 || all[0].node != "node-2" || all[1].node != "node-1" || !all[0].started.IsZero() {
		t.Fatalf("the requests are %+v, and should be one of each node, not answered yet", all)
	}
	write(later[40:] + stage("b", "ResponseStarted", 6, kubeletUser+tooMany) +
		stage("b", "ResponseComplete", 7, kubeletUser+tooMany) +
		stage("c", "RequestReceived", 0, kubeletUser) + stage("c", "Panic", 9, kubeletUser) +
		stage("a", "ResponseComplete", 900, impersonated+ok))
	all = read()
	if len(all) != 3 {
		t.Fatalf("%d requests, want 3", len(all))
	}
	a := all[0]
	if a.node != "node-3" || a.verb != "watch" || a.resource != "secrets" || a.object != "s-a" || a.code != 200 ||
		a.timeout != 1800 || !a.started.Equal(at(5)) || !a.completed.Equal(at(900)) {
		t.Errorf("the request is %+v", *a)
	}
	if all.rejected() != 1 || all.failed() != 0 {
		t.Errorf("%d rejected and %d failed, want 1 and 0", all.rejected(), all.failed())
	}
	if opened := all.opened(); len(opened) != 1 || !opened[0].Equal(at(5)) {
		t.Errorf("opened at %v, want one time", opened)
	}
}

func TestPeaks(t *testing.T) {
	watch := func(node, object string, received, started, completed int) *request {
		q := &request{node: node, verb: "watch", object: object, code: 200, received: at(received)}
		if started > 0 {
			q.started = at(started)
		}
		if completed > 0 {
			q.completed = at(completed)
		}
		return q
	}
	all := requestLog{
		watch("a", "1", 0, 10, 500), // The watch has started, so it is not under way any more.
		watch("a", "2", 20, 30, 0),
		watch("a", "3", 25, 0, 28), // The watch failed.
		watch("b", "1", 26, 0, 0),  // The API server was killed.
		{node: "b", verb: "get", received: at(26)},
	}
	if node, total := all.peaks(at(40)); node != 2 || total != 3 {
		t.Errorf("the peaks are %d of a node and %d of all, want 2 and 3", node, total)
	}
}

func TestBrokenAuditLog(t *testing.T) {
	var a auditParser
	if _, err := a.parse(strings.NewReader("{\"stage\":\n")); err == nil {
		t.Error("a line that is no event is no error")
	}
}

func TestPriorityLevels(t *testing.T) {
	levels, err := parsePriorityLevels([]byte(`PriorityLevelName, ActiveQueues, WaitingRequests, ExecutingRequests,
exempt,            0,            0,               <none>,
system,            3,            17,              9,
`))
	if want := (load{waiting: 17, executing: 9}); err != nil || levels["system"] != want {
		t.Errorf("the level system is %+v (%v), want %+v", levels["system"], err, want)
	}
	if _, err := parsePriorityLevels(nil); err == nil {
		t.Error("no levels are no error")
	}
}

func TestWorse(t *testing.T) {
	for name, test := range map[string]struct {
		driver, kubelet []float64
		row             row
		want            bool
	}{
		"less":                     {[]float64{1}, []float64{2}, row{}, false},
		"more":                     {[]float64{3}, []float64{2}, row{}, true},
		"more by the noise":        {[]float64{105}, []float64{100}, row{}, false},
		"more by the slack":        {[]float64{1}, []float64{0}, row{slack: 1}, false},
		"samples that differ much": {[]float64{130}, []float64{60, 60, 100, 140, 140}, row{}, false},
		"not compared":             {[]float64{3}, []float64{2}, row{info: true}, false},
		"not measured":             {[]float64{math.NaN()}, []float64{2}, row{}, true},
		"more, within its limit":   {[]float64{16}, []float64{5}, row{limit: 16}, false},
		"more than its limit":      {[]float64{17}, []float64{5}, row{limit: 16}, true},
		"at most the same":         {[]float64{2}, []float64{2}, row{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var r results
			test.row.of = liveKiB
			for fleet, samples := range map[string][]float64{driverName: test.driver, kubeletName: test.kubelet} {
				for _, v := range samples {
					r.add(liveKiB, fleet, v)
				}
			}
			if got := r.worse(test.row); got != test.want {
				t.Errorf("worse is %v, want %v", got, test.want)
			}
		})
	}
}

func TestWaits(t *testing.T) {
	h := heartbeats{}
	h.beats[leases] = []beat{
		{at(0), at(50)}, {at(80), at(130)}, {at(150), at(160)}, {at(200), at(1300)}, {at(400), at(410)}, {at(1100), at(1200)},
	}
	// The window is from 100 to 1,100. Heartbeats are due each 500 ms.
	got := fmt.Sprint(h.waits(leases, at(100), time.Second))
	if got != "[30 10 1100 600 10]" {
		t.Errorf("the heartbeats waited %s ms, want [30 10 1100 600 10]", got)
	}
}

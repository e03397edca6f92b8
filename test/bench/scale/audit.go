// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// auditPolicy logs each request of the drivers and of kubelet's managers, and not the heartbeats of this program.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, resources: [{group: coordination.k8s.io}, {group: "", resources: [pods/status]}]}
- {level: Metadata, userGroups: ["system:nodes", "system:serviceaccounts:fsuser-csi"]}
- {level: None}
`

// auditEvent is a line of the audit log: a stage of a request.
type auditEvent struct {
	AuditID    string
	Stage      string
	Verb       string
	RequestURI string
	User       struct {
		Username string
		Extra    map[string][]string
	}
	ImpersonatedUser *struct{ Username string }
	ObjectRef        *struct{ Resource, Namespace, Name string }
	ResponseStatus   *struct{ Code int }

	RequestReceivedTimestamp, StageTimestamp time.Time
}

// request is a request with the times at which the API server received it, began to answer, and ended.
type request struct {
	node     string // the user of the request, if it is known, and otherwise the node of the token
	verb     string
	resource string
	object   string
	code     int
	// timeout is the parameter timeoutSeconds, or 0 without it.
	timeout float64

	received, started, completed time.Time
}

// auditLog is the part of the audit log since a mark.
type auditLog struct {
	path   string
	offset int64
	parsed auditParser
}

// mark forgets the log so far.
func (l *auditLog) mark() error {
	info, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	l.offset, l.parsed = info.Size(), auditParser{}
	return nil
}

// requests returns the requests since the mark.
func (l *auditLog) requests() (requestLog, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(l.offset, io.SeekStart); err != nil {
		return nil, err
	}
	read, err := l.parsed.parse(f)
	l.offset += read
	return l.parsed.all, err
}

// auditParser has the requests whose beginning it has read. The API server writes the stages of a request in their
// order, and the stages of different requests in any order.
type auditParser struct {
	byID map[string]*request
	all  requestLog
}

// parse reads lines and returns their length. It ignores an incomplete line at the end, which the API server is
// writing.
func (a *auditParser) parse(r io.Reader) (length int64, err error) {
	reader := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return length, nil
		}
		if err != nil {
			return length, err
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return length, fmt.Errorf("read the audit log: %w: %s", err, line)
		}
		length += int64(len(line))
		a.add(e)
	}
}

func (a *auditParser) add(e auditEvent) {
	if a.byID == nil {
		a.byID = map[string]*request{}
	}
	if e.Stage == stageReceived {
		q := &request{received: e.RequestReceivedTimestamp}
		a.byID[e.AuditID] = q
		a.all = append(a.all, q)
	}
	if q := a.byID[e.AuditID]; q != nil {
		q.add(e)
	}
}

// The stages of an audit event. A Panic ends a request as ResponseComplete does.
const (
	stageReceived = "RequestReceived"
	stageStarted  = "ResponseStarted"
)

// tokenNode is the extra field of a user whose token is bound to a pod on a node.
const tokenNode = "authentication.kubernetes.io/node-name"

func (q *request) add(e auditEvent) {
	q.verb = e.Verb
	q.node = strings.TrimPrefix(e.User.Username, "system:node:")
	if nodes := e.User.Extra[tokenNode]; len(nodes) == 1 {
		q.node = nodes[0]
	}
	if e.ImpersonatedUser != nil {
		q.node = strings.TrimPrefix(e.ImpersonatedUser.Username, "system:node:")
	}
	if e.ObjectRef != nil {
		q.resource, q.object = e.ObjectRef.Resource, e.ObjectRef.Name
	}
	if uri, err := url.Parse(e.RequestURI); err == nil {
		q.timeout, _ = strconv.ParseFloat(uri.Query().Get("timeoutSeconds"), 64) // 0 without the parameter
	}
	if e.ResponseStatus != nil {
		q.code = e.ResponseStatus.Code
	}
	switch e.Stage {
	case stageReceived:
	case stageStarted:
		q.started = e.StageTimestamp
	default:
		q.completed = e.StageTimestamp
	}
}

// requestLog has requests in the order in which the API server received them.
type requestLog []*request

func (all requestLog) where(ok func(*request) bool) (some requestLog) {
	for _, q := range all {
		if ok(q) {
			some = append(some, q)
		}
	}
	return some
}

func (all requestLog) watches() requestLog {
	return all.where(func(q *request) bool { return q.verb == "watch" })
}

func (all requestLog) rejected() int {
	return len(all.where(func(q *request) bool { return q.code == http.StatusTooManyRequests }))
}

// failed returns the number of requests with an error other than 429.
func (all requestLog) failed() int {
	return len(all.where(func(q *request) bool {
		return q.code >= http.StatusBadRequest && q.code != http.StatusTooManyRequests
	}))
}

// codes counts the answers by their code, for the progress of the run.
func (all requestLog) codes() map[int]int {
	codes := map[int]int{}
	for _, q := range all {
		codes[q.code]++
	}
	return codes
}

// opened returns the times at which the first successful watch of each object of each node began.
func (all requestLog) opened() (times []time.Time) {
	seen := map[[2]string]bool{}
	for _, q := range all.watches() {
		key := [2]string{q.node, q.object}
		if q.code == http.StatusOK && !q.started.IsZero() && !seen[key] {
			seen[key] = true
			times = append(times, q.started)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// underWay returns the intervals in which the API server was starting the watches. A watch is under way until its
// answer begins, or until it fails. A watch without an end was under way until end.
func (all requestLog) underWay(end time.Time) (intervals []interval) {
	for _, q := range all.watches() {
		i := interval{q.received, end}
		for _, t := range []time.Time{q.completed, q.started} {
			if !t.IsZero() {
				i.end = t
			}
		}
		intervals = append(intervals, i)
	}
	return intervals
}

// peaks returns the largest numbers of watches under way at the same time, of one node and of all nodes.
func (all requestLog) peaks(end time.Time) (node, total int) {
	byNode := map[string]requestLog{}
	for _, q := range all {
		byNode[q.node] = append(byNode[q.node], q)
	}
	for _, of := range byNode {
		node = max(node, overlap(of.underWay(end)))
	}
	return node, overlap(all.underWay(end))
}

// interval includes its start but not its end.
type interval struct{ start, end time.Time }

// overlap returns the largest number of intervals that share a point in time.
func overlap(intervals []interval) (most int) {
	type edge struct {
		at   time.Time
		step int
	}
	var edges []edge
	for _, i := range intervals {
		edges = append(edges, edge{i.start, 1}, edge{i.end, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if order := a.at.Compare(b.at); order != 0 {
			return order
		}
		return a.step - b.step // an interval that ends here does not overlap with one that starts here
	})
	now := 0
	for _, e := range edges {
		now += e.step
		most = max(most, now)
	}
	return most
}

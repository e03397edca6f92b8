// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
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

// request is a request with the times at which the API server received it, began to answer, and was done.
type request struct {
	node     string // the user as whom the request was made, if it is known, and otherwise the node of the token
	verb     string
	resource string
	// object is the request without its parameters that change from one to the next.
	object string
	code   int

	received, started, completed time.Time
}

// auditLog reads the audit log from an offset on.
type auditLog struct {
	path   string
	offset int64
}

// mark makes the next read begin at the end of the log.
func (l *auditLog) mark() error {
	info, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	l.offset = info.Size()
	return nil
}

// requests returns the requests since mark.
func (l *auditLog) requests() (requests, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(l.offset, io.SeekStart); err != nil {
		return nil, err
	}
	return parseAudit(f)
}

// parseAudit returns the requests whose beginning the log has. The last line may be incomplete, because the API server
// is writing it. The API server writes in the order of the stages of a request, and not in the order of their times.
func parseAudit(r io.Reader) (requests, error) {
	byID := map[string]*request{}
	var order []string
	reader := bufio.NewReaderSize(r, 1<<20)
	for number := 1; ; number++ {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		var e auditEvent
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return nil, fmt.Errorf("audit log, line %d: %w", number, err)
		}
		if e.Stage == stageReceived {
			byID[e.AuditID] = &request{received: e.RequestReceivedTimestamp}
			order = append(order, e.AuditID)
		}
		if q := byID[e.AuditID]; q != nil {
			q.add(e)
		}
	}
	all := make(requests, 0, len(order))
	for _, id := range order {
		all = append(all, byID[id])
	}
	return all, nil
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

// requests are in the order in which the API server received them.
type requests []*request

func (all requests) where(ok func(*request) bool) (some requests) {
	for _, q := range all {
		if ok(q) {
			some = append(some, q)
		}
	}
	return some
}

// since leaves out the requests before a time.
func (all requests) since(t time.Time) requests {
	return all.where(func(q *request) bool { return !q.received.Before(t) })
}

func (all requests) watches() requests {
	return all.where(func(q *request) bool { return q.verb == "watch" })
}

func (all requests) rejected() int {
	return len(all.where(func(q *request) bool { return q.code == http.StatusTooManyRequests }))
}

// failed are the requests with an error other than 429.
func (all requests) failed() int {
	return len(all.where(func(q *request) bool {
		return q.code >= http.StatusBadRequest && q.code != http.StatusTooManyRequests
	}))
}

// opened are the times at which the first successful watch of each object of each node began.
func (all requests) opened() (times []time.Time) {
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
// answer begins, or until it fails. One without an end was under way until end.
func (all requests) underWay(end time.Time) (intervals []interval) {
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

// peaks are the largest numbers of watches under way at the same time, of one node and of all.
func (all requests) peaks(end time.Time) (node, total int) {
	byNode := map[string]requests{}
	for _, q := range all {
		byNode[q.node] = append(byNode[q.node], q)
	}
	for _, of := range byNode {
		node = max(node, overlap(of.underWay(end)))
	}
	return node, overlap(all.underWay(end))
}

// interval contains its start and not its end.
type interval struct{ start, end time.Time }

// overlap returns the largest number of intervals that share a point in time.
func overlap(intervals []interval) (most int) {
	type edge struct {
		at   time.Time
		step int
	}
	var edges []edge
	for _, i := range intervals {
		if i.start.Before(i.end) {
			edges = append(edges, edge{i.start, 1}, edge{i.end, -1})
		}
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

// SPDX-License-Identifier: Apache-2.0

//go:build soak

package torture

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// auditPolicy makes the API server log the requests of the driver, with the user before impersonation.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:fsuser-csi:fsuser-csi"]
- level: None
`

// auditLog reads the API server's log of the driver's requests.
type auditLog struct {
	path   string
	offset int64
	// requests is the number of requests, and refused the number of those with an error, by status.
	requests int
	refused  map[int]int
	// renewals is the number of watches that ended after half of watchDuration or more: the API server ended them.
	renewals int
	// open has the ids of the open watches.
	open map[string]bool
}

// newAuditLog returns the log, and the flags with which the API server writes it.
func newAuditLog(t testing.TB) (a *auditLog, flags []string) {
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	a = &auditLog{path: filepath.Join(dir, "audit.log"), refused: map[int]int{}, open: map[string]bool{}}
	// At this size, in MB, the API server would begin another file.
	return a, []string{"--audit-policy-file=" + policy, "--audit-log-path=" + a.path, "--audit-log-maxsize=10000"}
}

// auditEvent is a part of audit.k8s.io/v1 Event.
type auditEvent struct {
	AuditID, Stage, Verb                     string
	RequestReceivedTimestamp, StageTimestamp time.Time
	ResponseStatus                           struct{ Code int }
}

// read reads the new events.
func (a *auditLog) read(t testing.TB) {
	t.Helper()
	file, err := os.Open(a.path)
	if errors.Is(err, fs.ErrNotExist) { // There was no request yet.
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewReader(io.NewSectionReader(file, a.offset, 1<<62))
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // The last line is not complete yet.
			return
		}
		a.offset += int64(len(line))
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("read the audit log: %v: %s", err, line)
		}
		a.add(e)
	}
}

func (a *auditLog) add(e auditEvent) {
	if e.Stage == "ResponseStarted" {
		a.requests++
		a.open[e.AuditID] = true
		return
	}
	if !a.open[e.AuditID] {
		a.requests++
	}
	delete(a.open, e.AuditID)
	switch code := e.ResponseStatus.Code; {
	case code >= 400:
		a.refused[code]++
	case e.Verb == "watch" && e.StageTimestamp.Sub(e.RequestReceivedTimestamp) >= watchDuration/2:
		a.renewals++
	}
}

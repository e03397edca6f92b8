// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// with returns a request for the same volume with other content of its nodePublishSecretRef.
func (r Request) with(text string) Request {
	r.Secrets = map[string]string{"k": text}
	return r
}

func TestARepublishWhoseCallerHasGivenUpChangesNothing(t *testing.T) {
	h := newFakeHarness(t)
	r := h.request("a")
	h.publish(r.with("first"))
	h.run()
	givenUp, giveUp := context.WithCancel(t.Context())
	giveUp()
	for i := range 100 { // a free lock and an ended context are ready at once, and Go chooses one of them at random
		isErr(t, h.Publish(givenUp, r.with(fmt.Sprint("late ", i))), ErrLocked)
		if got := visible(t, r.TargetPath)["k"]; got != "first" {
			t.Fatalf("after attempt %d the volume shows %q", i, got)
		}
	}
	h.publish(r.with("last"))
	h.becomes(r, content{"k": "last"})
	h.wrote(1)
}

func TestARepublishThatGaveUpWaitingChangesNothing(t *testing.T) {
	h := newFakeHarness(t)
	r := h.request("a")
	h.publish(r.with("first"))
	h.run()
	unlock, err := h.locks.lock(t.Context(), r.ID) // like another call for the volume
	must(t, err)
	impatient, giveUp := context.WithCancel(t.Context())
	early, late := make(chan error, 1), make(chan error, 1)
	go func() { early <- h.Publish(impatient, r.with("early")) }()
	testkit.Eventually(t, patience, "the first republish to wait", func() bool { return h.locks.users(r.ID) == 2 })
	go func() { late <- h.Publish(t.Context(), r.with("late")) }()
	testkit.Eventually(t, patience, "the second republish to wait", func() bool { return h.locks.users(r.ID) == 3 })
	giveUp()
	isErr(t, <-early, ErrLocked)
	unlock()
	must(t, <-late)
	h.becomes(r, content{"k": "late"})
	h.wrote(1)
}

// wrote fails the test unless the workers have finished after n refreshes that wrote to a volume.
func (h *harness) wrote(n int) {
	h.t.Helper()
	testkit.Eventually(h.t, patience, "the workers to be idle", h.idle)
	if got := h.counts()["refresh ok"]; got != n {
		h.t.Errorf("%d refreshes wrote to a volume, want %d", got, n)
	}
}

// The kernel can block a refresh without a limit. The driver answers republishes in the meantime, and the last answered
// one counts.
func TestTheLastRepublishThatWasAnsweredDuringARefreshCounts(t *testing.T) {
	h := newFakeHarness(t)
	r := h.request("a")
	h.publish(r.with("first"))
	h.run()
	release := testkit.Stall(t, r.TargetPath)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, text := range []string{"held", "second", "third", "last"} {
		answered := make(chan error, 1)
		go func() { answered <- h.Publish(ctx, r.with(text)) }()
		select {
		case err := <-answered:
			must(t, err)
		case <-ctx.Done():
			release()
			t.Fatalf("the republish with %q was not answered: %v", text, <-answered)
		}
		if text == "held" {
			h.becomesStale(r, "")
		}
	}
	release()
	h.becomes(r, content{"k": "last"})
	h.becomesCurrent(r)
	h.wrote(2) // the content of the blocked refresh, and the last content
}

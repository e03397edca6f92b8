// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"sync"

	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// quota counts what the volumes of the node take of what they may take together. A volume has a share from before it is
// written until it is forgotten. Safe for concurrent use.
type quota struct {
	limits Limits

	mu sync.Mutex
	// shares are bytes of memory by volume id, and total is their sum.
	shares map[string]int64
	total  int64
}

func newQuota(limits Limits) *quota { return &quota{limits: limits, shares: map[string]int64{}} }

// reserve gives a volume a share of that many bytes instead of the one it has. undo gives the volume back the share
// that it had before.
func (q *quota) reserve(id string, bytes int64) (undo func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	had, known := q.shares[id]
	if !known && len(q.shares) >= q.limits.Volumes {
		return nil, fmt.Errorf("%w: the node has %d volumes, as many as it may (--max-volumes)", ErrExhausted, len(q.shares))
	}
	// A volume may always shrink: after a restart with a lower limit the volumes can take too much.
	if bytes > had && q.total-had+bytes > q.limits.NodeBytes {
		// The message does not say what the volumes would take: that changes with each other volume, and each new message
		// makes a new Event.
		return nil, fmt.Errorf("%w: with these %d bytes the volumes of the node would take more than the %d that they may (--max-node-bytes)",
			ErrExhausted, bytes, q.limits.NodeBytes)
	}
	q.set(id, bytes)
	return func() {
		if !known {
			q.release(id)
			return
		}
		q.restore(id, had)
	}, nil
}

// restore gives a volume that exists already its share, whatever the limits are.
func (q *quota) restore(id string, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.set(id, bytes)
}

func (q *quota) set(id string, bytes int64) {
	q.total += bytes - q.shares[id]
	q.shares[id] = bytes
}

// release ends the share of a volume.
func (q *quota) release(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total -= q.shares[id]
	delete(q.shares, id)
}

// taken is the sum of all shares, in bytes.
func (q *quota) taken() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}

// heldBy is what a tmpfs takes that is there already, in bytes.
func heldBy(state tmpfs.State) int64 {
	return int64(state.Usage.BytesUsed + projector.InodeBytes*state.Usage.InodesUsed)
}

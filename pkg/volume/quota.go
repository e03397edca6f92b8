// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"sync"

	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// quota counts what the volumes of the node take of what they may take together. A volume has a share from before it is written until
// it is forgotten. Safe for concurrent use.
type quota struct {
	limits Limits

	mu sync.Mutex
	// shares are bytes of memory by volume id, and total is their sum.
	shares map[string]int64
	total  int64
}

func newQuota(limits Limits) *quota { return &quota{limits: limits, shares: map[string]int64{}} }

// take gives a volume a share of that many bytes instead of the one it has. back gives it what it had before.
func (q *quota) take(id string, bytes int64) (back func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	had, known := q.shares[id]
	if !known && len(q.shares) >= q.limits.Volumes {
		return nil, fmt.Errorf("%w: the node has %d volumes, as many as it may (--max-volumes)", ErrExhausted, len(q.shares))
	}
	// One that shrinks may always: with a lower limit after a restart there can be too much.
	if bytes > had && q.total-had+bytes > q.limits.NodeBytes {
		// Not what they would take: it changes with the others, and what is told once would be told with each.
		return nil, fmt.Errorf("%w: with these %d bytes the volumes of the node would take more than the %d that they may (--max-node-bytes)",
			ErrExhausted, bytes, q.limits.NodeBytes)
	}
	q.set(id, bytes)
	return func() {
		if !known {
			q.giveBack(id)
			return
		}
		q.keep(id, had)
	}, nil
}

// keep gives a volume that is there already its share, whatever the limits are.
func (q *quota) keep(id string, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.set(id, bytes)
}

func (q *quota) set(id string, bytes int64) {
	q.total += bytes - q.shares[id]
	q.shares[id] = bytes
}

// giveBack ends the share of a volume.
func (q *quota) giveBack(id string) {
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

// inodeBytes is what a file, directory or link takes of the kernel's memory besides its content. By /proc/slabinfo of Linux 6.18 (x86_64)
// an inode of a tmpfs takes 752 bytes, its name 192, with more than 32 bytes 512 more, its place in a directory up to 250: 0.9 KiB
// for a file in a directory of many, 1.2 KiB for a directory in a directory, 1.7 KiB at most.
const inodeBytes = 3 << 9

// memory is what one version of p takes, in bytes: what heldBy says of the tmpfs when it is written.
func memory(p projector.Payload) int64 {
	directories, names := around(p)
	const always = 3 // the root, ..data and the generation
	bytes := pages(p) + inodeBytes*int64(len(p.Files)+len(directories)+len(names)+always)
	for name := range names {
		if len("..data/"+name) >= 128 { // mm/shmem.c, SHORT_SYMLINK_LEN
			bytes += int64(os.Getpagesize())
		}
	}
	return bytes
}

// heldBy is what a tmpfs takes that is there already, in bytes.
func heldBy(state tmpfs.State) int64 { return state.BytesUsed + inodeBytes*state.InodesUsed }

// pages is what the content of the files of p takes of a tmpfs, in bytes: whole pages.
func pages(p projector.Payload) int64 {
	page := int64(os.Getpagesize()) // 64 KiB on some arm64 and ppc64le
	var bytes int64
	for _, f := range p.Files {
		bytes += (int64(len(f.Data)) + page - 1) / page * page
	}
	return bytes
}

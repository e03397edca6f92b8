// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// errReleased means that the volume was unpublished while a refresh was writing its files.
var errReleased = errors.New("the volume is not published any more")

// quota counts the resources of the node's volumes, and refuses a volume that exceeds a limit. It is safe for
// concurrent
// use.
type quota struct {
	limits Limits

	// mu guards the map, its accounts, and the shares.
	mu sync.Mutex
	// accounts has the accounts of the node, and of each namespace and pod that has a volume.
	accounts map[owner]*account
}

// owner identifies the owner of an account: a pod, a namespace (without podUID), or the node (the zero owner).
type owner struct {
	// flag is the flag that sets the owner's share.
	flag              string
	namespace, podUID string
}

// account is the sum of the resources that the volumes of one owner take.
type account struct {
	owner owner
	// name is the name of the owner in messages.
	name string
	// percent is the percentage of each limit that the owner may take.
	percent int

	volumes int
	bytes   int64
	// objects has the watched objects, with the number of volumes that watch each of them.
	objects map[source.Ref]int
}

// share is the resources that one volume takes: a volume, its watched objects, and memory. The volume has its share
// from
// before the first request for an object until the volume is forgotten.
type share struct {
	quota *quota
	// accounts are the accounts of the pod, of the namespace and of the node.
	accounts []*account
	// objects are the watched objects, without duplicates.
	objects []source.Ref
	// record, files and content are bytes of memory: of the volume's record, of one version of its files, and of the
	// watched objects or of the last request. An object that two volumes watch counts twice.
	record, files, content int64
	// contentUnknown means that the volume was published by an earlier process and its objects have not been read since.
	contentUnknown bool
	released       bool
}

func newQuota(limits Limits) *quota { return &quota{limits: limits, accounts: map[owner]*account{}} }

// reserve returns the share of a volume before it is published. The share counts the record and the objects.
func (q *quota) reserve(v *volume) (*share, error) {
	s := &share{quota: q, objects: v.watched(), record: recordMemory(v)}
	q.mu.Lock()
	defer q.mu.Unlock()
	s.accounts = q.accountsOf(v.pod)
	for _, a := range s.accounts {
		if err := a.check(q.limits, 1, s.record, s.objects); err != nil {
			return nil, err
		}
	}
	s.open()
	return s, nil
}

// restore returns the share of a volume that is published already. It ignores the limits.
func (q *quota) restore(v *volume, state tmpfs.State) *share {
	s := &share{quota: q, objects: v.watched(), record: recordMemory(v), contentUnknown: true}
	q.mu.Lock()
	defer q.mu.Unlock()
	s.accounts = q.accountsOf(v.pod)
	s.open()
	s.set(int64(state.Usage.BytesUsed+projector.InodeBytes*state.Usage.InodesUsed), 0)
	return s
}

// recordMemory returns the bytes of memory of a volume's record, because the directory of records is on a tmpfs.
func recordMemory(v *volume) int64 { return projector.FileMemory(record.MaxLength(v.toRecord())) }

// taken returns the bytes of memory that the volumes of the node take.
func (q *quota) taken() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if node := q.accounts[owner{}]; node != nil {
		return node.bytes
	}
	return 0
}

// accountsOf returns the accounts of a pod's volumes, the pod's own account first. The message about a pod's limit does
// not change with the volumes of other pods, so that a retry makes no new Event.
func (q *quota) accountsOf(pod Pod) (all []*account) {
	for _, a := range []account{
		{
			owner: owner{"--pod-share", pod.Namespace, pod.UID}, percent: q.limits.PodShare,
			name: fmt.Sprintf("pod %q", pod.Namespace+"/"+pod.Name),
		},
		{
			owner: owner{flag: "--namespace-share", namespace: pod.Namespace}, percent: q.limits.NamespaceShare,
			name: fmt.Sprintf("namespace %q", pod.Namespace),
		},
		{name: "the node", percent: 100},
	} {
		switch had := q.accounts[a.owner]; {
		case a.owner != (owner{}) && a.percent == 100: // Without a share of its own, the owner has no account.
		case had != nil:
			all = append(all, had)
		default:
			a.objects = map[source.Ref]int{}
			all = append(all, &a)
		}
	}
	return all
}

// check returns an error if the owner may not take the additional resources. The text of the error is the same at each
// attempt: it has no number that changes.
func (a *account) check(limits Limits, volumes int, bytes int64, objects []source.Ref) error {
	added := 0
	for _, ref := range objects {
		if a.objects[ref] == 0 {
			added++
		}
	}
	for _, r := range []struct {
		has, more, limit int64
		what, flag       string
	}{
		{int64(a.volumes), int64(volumes), int64(limits.Volumes), "volumes", "--max-volumes"},
		{a.bytes, bytes, limits.NodeBytes, "bytes of memory for volumes", "--max-node-bytes"},
		{int64(len(a.objects)), int64(added), int64(limits.Objects), "watched objects", "--max-watched-objects"},
	} {
		most := portion(r.limit, a.percent)
		// After a restart with a lower limit, the volumes may exceed the limit. A volume that takes nothing more is allowed.
		if r.more <= 0 || r.has+r.more <= most {
			continue
		}
		rule := r.flag
		if a.owner.flag != "" {
			rule = fmt.Sprintf("%s: %d %% of %s=%d", a.owner.flag, a.percent, r.flag, r.limit)
		}
		return fmt.Errorf("%w: %s would have more than %d %s (%s)", ErrExhausted, a.name, most, r.what, rule)
	}
	return nil
}

// portion returns a percentage of a limit, but at least 1.
func portion(limit int64, percent int) int64 {
	p := int64(percent)
	return max(1, limit/100*p+limit%100*p/100)
}

// resize sets the counted bytes of the volume to those of a new version of its files and of the content of the version.
// undo restores the old numbers.
func (s *share) resize(files, content int64) (undo func(), err error) {
	s.quota.mu.Lock()
	defer s.quota.mu.Unlock()
	if s.released {
		return nil, errReleased
	}
	// The content is that of before the restart. It counts without a check, because a lower limit after the restart must
	// not make the volume stale.
	if s.contentUnknown {
		s.contentUnknown = false
		s.set(s.files, content)
	}
	for _, a := range s.accounts {
		if err := a.check(s.quota.limits, 0, files+content-s.files-s.content, nil); err != nil {
			return nil, err
		}
	}
	hadFiles, hadContent := s.files, s.content
	s.set(files, content)
	return func() {
		s.quota.mu.Lock()
		defer s.quota.mu.Unlock()
		if !s.released {
			s.set(hadFiles, hadContent)
		}
	}, nil
}

// volumes returns how many volumes of the node watch the share's most watched object; 1 if the share has no object.
func (s *share) volumes() int {
	s.quota.mu.Lock()
	defer s.quota.mu.Unlock()
	most, node := 1, s.accounts[len(s.accounts)-1]
	for _, ref := range s.objects {
		most = max(most, node.objects[ref])
	}
	return most
}

// release gives the resources of the share back.
func (s *share) release() {
	s.quota.mu.Lock()
	defer s.quota.mu.Unlock()
	if s.released {
		return
	}
	s.released = true
	s.set(0, 0)
	for _, a := range s.accounts {
		for _, ref := range s.objects {
			if a.objects[ref]--; a.objects[ref] == 0 {
				delete(a.objects, ref)
			}
		}
		a.volumes, a.bytes = a.volumes-1, a.bytes-s.record
		if a.volumes == 0 {
			delete(s.quota.accounts, a.owner)
		}
	}
}

// open counts the volume, its record and its objects. The caller of open and of the functions below holds the lock.
func (s *share) open() {
	for _, a := range s.accounts {
		s.quota.accounts[a.owner] = a
		a.volumes, a.bytes = a.volumes+1, a.bytes+s.record
		for _, ref := range s.objects {
			a.objects[ref]++
		}
	}
}

func (s *share) set(files, content int64) {
	for _, a := range s.accounts {
		a.bytes += files + content - s.files - s.content
	}
	s.files, s.content = files, content
}

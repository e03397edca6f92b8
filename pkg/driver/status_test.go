// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

func TestStatus(t *testing.T) {
	want := map[error]codes.Code{
		volume.ErrLeftover:       codes.Unavailable,
		volume.ErrLocked:         codes.Aborted,
		volume.ErrConflict:       codes.AlreadyExists,
		volume.ErrUnknown:        codes.NotFound,
		volume.ErrInvalid:        codes.InvalidArgument,
		volume.ErrPrecondition:   codes.FailedPrecondition,
		volume.ErrExhausted:      codes.ResourceExhausted,
		source.ErrNotFound:       codes.NotFound,
		source.ErrForbidden:      codes.PermissionDenied,
		source.ErrUnavailable:    codes.Unavailable,
		context.DeadlineExceeded: codes.DeadlineExceeded,
		context.Canceled:         codes.Canceled,
		unix.ENOSPC:              codes.ResourceExhausted,
		unix.ENOMEM:              codes.ResourceExhausted,
		unix.EDQUOT:              codes.ResourceExhausted,
		unix.EMFILE:              codes.ResourceExhausted,
		unix.ENFILE:              codes.ResourceExhausted,
		unix.EPERM:               codes.Internal,
		errors.New("anything"):   codes.Internal,
	}
	for sentinel, code := range want {
		for how, err := range map[string]error{
			"bare":    sentinel,
			"wrapped": fmt.Errorf("publish volume v: %w", &os.PathError{Op: "write", Path: "k", Err: sentinel}),
			"joined":  errors.Join(errors.New("something else"), fmt.Errorf("close: %w", sentinel)),
			"listed":  fmt.Errorf("%w; and %w", errors.New("something else"), sentinel),
		} {
			s := status.Convert(toStatus(err))
			text := err.Error()
			if sentinel == unix.EMFILE {
				text += " (--max-open-files)"
			}
			if s.Code() != code || s.Message() != text {
				t.Errorf("%v, %s, is %v with the text %q, want %v with its own", sentinel, how, s.Code(), s.Message(), code)
			}
		}
	}
	if s := status.Convert(toStatus(&source.Error{Reason: source.ErrUnavailable,
		Number: unix.EMFILE})); !strings.HasSuffix(s.Message(), " (--max-open-files)") {
		t.Errorf("no descriptor for a connection: %q", s.Message())
	}
	for _, s := range statuses() {
		if _, ok := want[s.is]; !ok {
			t.Errorf("the test knows nothing of %v", s.is)
		}
	}
}

// After a final code, kubelet never calls NodeUnpublishVolume. If something was left, the pod would hang in
// Terminating.
func TestWhatIsLeftBehindIsNeverAFinalError(t *testing.T) {
	for _, s := range statuses() {
		for _, err := range []error{
			fmt.Errorf("%w; %w: rmdir: device or resource busy", s.is, volume.ErrLeftover),
			errors.Join(volume.ErrLeftover, s.is),
		} {
			if code := status.Code(toStatus(err)); code != codes.Unavailable {
				t.Errorf("%q is %v, want Unavailable", err, code)
			}
		}
	}
}

func TestTheFirstThatFitsCounts(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"a lock that was waited for until the deadline", fmt.Errorf("%w: %w", volume.ErrLocked, context.DeadlineExceeded),
			codes.Aborted},
		{"an object that could not be read before the deadline",
			fmt.Errorf("%w: %w", source.ErrUnavailable, context.DeadlineExceeded), codes.DeadlineExceeded},
		{"an object that could not be read for want of a descriptor",
			fmt.Errorf("publish: %w", &source.Error{Reason: source.ErrUnavailable, Number: unix.EMFILE}),
			codes.ResourceExhausted},
		{"an object that could not be read because nobody listens",
			&source.Error{Reason: source.ErrUnavailable, Number: unix.ECONNREFUSED}, codes.Unavailable},
		{"a target that is not as it must be, by error number", fmt.Errorf("%w: %w", volume.ErrPrecondition, unix.ENOSPC),
			codes.FailedPrecondition},
	} {
		if got := status.Code(toStatus(test.err)); got != test.want {
			t.Errorf("%s is %v, want %v", test.name, got, test.want)
		}
	}
}

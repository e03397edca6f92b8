// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var errAway = errors.New("away")

// begin starts a watch. It fails the test if that is not allowed.
func begin(t *testing.T, s *starts) (end func(error)) {
	t.Helper()
	end, err := s.begin(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// waiting starts a watch in a goroutine, and returns the channel of the error of begin. The watch ends with outcome.
func waiting(ctx context.Context, s *starts, outcome error) <-chan error {
	result := make(chan error, 1)
	go func() {
		end, err := s.begin(ctx, false)
		if err == nil {
			end(outcome)
		}
		result <- err
	}()
	return result
}

func TestProbeFailsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		var results []<-chan error
		for range 100 {
			results = append(results, waiting(t.Context(), s, errAway))
		}
		synctest.Wait()
		time.Sleep(minBackoff)
		synctest.Wait()
		made := 0
		for _, result := range results {
			switch err := <-result; {
			case err == nil:
				made++
			case !errors.Is(err, errAway):
				t.Errorf("error %v, want that of the probe", err)
			}
		}
		if made != 1 {
			t.Errorf("%d requests, want one probe", made)
		}
	})
}

// TestProbeOfAnother checks that a watch that failed before does not wait for the probe of another watch, because it
// would start together with others.
func TestProbeOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		probe := begin(t, s)
		if _, err := s.begin(t.Context(), true); !errors.Is(err, errAway) {
			t.Errorf("error %v, want %v", err, errAway)
		}
		probe(nil)
		if _, err := s.begin(t.Context(), true); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

func TestProbePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		for _, most := range []time.Duration{100, 300, 900, 2700, 5000, 5000} {
			most *= time.Millisecond
			start := time.Now()
			end, err := s.begin(t.Context(), false)
			for err != nil { // The error comes at once, because the pause is long.
				time.Sleep(10 * time.Millisecond)
				end, err = s.begin(t.Context(), false)
			}
			if took := time.Since(start); took < most/2 || took > most {
				t.Errorf("a pause of %v, want %v to %v", took, most/2, most)
			}
			end(errAway)
		}
		time.Sleep(maxProbePause)
		begin(t, s)(nil)
		begin(t, s)(errAway)
		start := time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took > minBackoff {
			t.Errorf("a pause of %v in another outage, want at most %v", took, minBackoff)
		}
	})
}

func TestAnswerEndsOutage(t *testing.T) {
	broken := apierrors.NewInternalError(errors.New("of this object"))
	for name, answer := range map[string]error{"a watch": nil, "500": broken, "nonsense": errNotUnderstood} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStarts()
				begin(t, s)(errAway)
				probe := waiting(t.Context(), s, answer)
				synctest.Wait()
				other := waiting(t.Context(), s, nil)
				if err := <-probe; err != nil {
					t.Error(err)
				}
				start := time.Now()
				if err := <-other; err != nil || time.Since(start) > 0 {
					t.Errorf("another watch waited %v, error %v", time.Since(start), err)
				}
			})
		})
	}
}

// TestRefusalAfterOutage uses an API server that has just started and refuses everything.
func TestRefusalAfterOutage(t *testing.T) {
	refused := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a", nil)
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		begin(t, s)(refused)
		if _, err := s.begin(t.Context(), false); !errors.Is(err, errAway) {
			t.Errorf("a start after one refusal: error %v, want that of the outage", err)
		}
		time.Sleep(maxProbePause)
		probe := begin(t, s)
		other := waiting(t.Context(), s, nil)
		synctest.Wait()
		probe(refused)
		start := time.Now()
		if err := <-other; err != nil || time.Since(start) > 0 {
			t.Errorf("a start after two refusals waited %v, error %v", time.Since(start), err)
		}
		begin(t, s)(refused)
		start = time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took > 0 {
			t.Errorf("a start waited %v after a refusal without an outage", took)
		}
	})
}

func TestRetryAfterHoldsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		earlier := begin(t, s)
		begin(t, s)(apierrors.NewTooManyRequests("slow down", 3))
		earlier(nil) // The answer to an earlier request is an answer, too.
		start := time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("a start after %v, want 3s", took)
		}
	})
}

func TestLongPauseFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		slow := apierrors.NewTooManyRequests("slow down", 3)
		begin(t, s)(slow)
		start := time.Now()
		if _, err := s.begin(t.Context(), false); !errors.Is(err, slow) || time.Since(start) > 0 {
			t.Errorf("error %v after %v, want %v at once", err, time.Since(start), slow)
		}
		time.Sleep(3*time.Second - maxProbeWait)
		begin(t, s)(nil)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("a start after %v, want 3s", took)
		}
	})
}

func TestAbandonedProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		ctx, cancel := context.WithCancel(t.Context())
		abandoned := waiting(ctx, s, nil)
		synctest.Wait()
		other := waiting(t.Context(), s, nil)
		synctest.Wait()
		cancel()
		if err := <-abandoned; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want %v", err, context.Canceled)
		}
		if err := <-other; err != nil {
			t.Error(err)
		}
		begin(t, s)(errAway)
		begin(t, s)(context.Canceled) // for example, because the last volume of the object was unpublished
		begin(t, s)(nil)
	})
}

// TestSlowProbe uses an API server that hangs for one object only.
func TestSlowProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		slow := begin(t, s)
		start := time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took != maxProbeWait {
			t.Errorf("another watch started after %v, want %v", took, maxProbeWait)
		}
		slow(errNoAnswer)
		start = time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took > 0 {
			t.Errorf("a watch waited %v for a failure that is older than the last answer", took)
		}
	})
}

// TestRefusedProbes uses an API server that refuses two requests that probe at the same time.
func TestRefusedProbes(t *testing.T) {
	refused := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a", nil)
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		begin(t, s)(errAway)
		slow := begin(t, s)
		other := begin(t, s)
		go slow(refused)
		go other(refused)
		synctest.Wait()
		if s.next != nil {
			t.Error("two requests were refused, and the outage goes on")
		}
	})
}

func TestFailureOfBeforeTheOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStarts()
		late := begin(t, s)
		begin(t, s)(errAway)
		late(errAway)
		start := time.Now()
		begin(t, s)(nil)
		if took := time.Since(start); took > minBackoff {
			t.Errorf("a pause of %v, want that of one failure, at most %v", took, minBackoff)
		}
	})
}

// TestSpread checks that the longest pause depends on the length of the outage and on the number of watches.
func TestSpread(t *testing.T) {
	for name, test := range map[string]struct {
		outage time.Duration
		n      int
		want   time.Duration
	}{
		"short":           {outage: time.Second, n: 1000, want: 3 * time.Second / 2},
		"long, a watch":   {outage: time.Hour, n: 1, want: spreadPerWatch},
		"long, many":      {outage: time.Hour, n: 1000, want: maxSpread},
		"as long as that": {outage: 30 * time.Second, n: 100, want: maxSpread},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStarts()
				longest := func(failed time.Time) (pause time.Duration) {
					for range 1000 {
						pause = max(pause, s.spread(failed, test.n))
					}
					return pause
				}
				begin(t, s)(errAway)
				failed := time.Now()
				if pause := longest(failed); pause > 0 {
					t.Errorf("%v during the outage, want no pause", pause)
				}
				time.Sleep(test.outage)
				begin(t, s)(nil)
				// The probability that none of 1000 pauses is in the last tenth is 2e-46.
				if pause := longest(failed); pause > test.want || pause < test.want*9/10 {
					t.Errorf("at most %v after the outage, want %v", pause, test.want)
				}
				time.Sleep(time.Nanosecond)
				if pause := longest(time.Now()); pause > 0 {
					t.Errorf("%v after a failure without an outage, want no pause", pause)
				}
			})
		})
	}
}

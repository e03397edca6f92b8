// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Message is a line of JSON from keep and node to the process that started the cluster. A message with Ready or Error
// is the last one.
type Message struct {
	Step  string `json:"step,omitempty"`
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// reporter sends messages. It is safe for concurrent use. It ignores an error if the receiver has ended.
type reporter struct {
	mu  sync.Mutex
	out io.Writer
}

func (r *reporter) send(m Message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err) // This can't happen for strings.
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.out.Write(append(line, '\n'))
}

// step reports that something was done, and how long it took.
func (r *reporter) step(begin time.Time, format string, args ...any) {
	r.send(Message{Step: fmt.Sprintf("%s (%.1f s)", fmt.Sprintf(format, args...), time.Since(begin).Seconds())})
}

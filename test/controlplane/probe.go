// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	probeInterval = 50 * time.Millisecond
	probeTimeout  = 5 * time.Second // of one request
)

// probe requests a URL until the answer is 200.
type probe struct {
	client *http.Client
	url    string
}

// wait waits until the answer of the URL is 200. It gives up when ctx or one of the processes ends. The error contains
// the last answer or the end of the log of the process.
func (p probe) wait(ctx context.Context, processes ...*process) error {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	last := fmt.Errorf("no request made yet")
	for {
		err := p.once(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // Otherwise the end of ctx interrupted the request.
			last = err
		}
		for _, process := range processes {
			if !process.running() {
				return process.failure()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("get %s: %w; the last answer was: %w; %s",
				p.url, context.Cause(ctx), last, processes[0].lastWords())
		case <-ticker.C:
		}
	}
}

func (p probe) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// The API server's answer lists its checks. Successful ones start with [+].
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<10))
	if response.StatusCode == http.StatusOK {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s, reading the body: %w", response.Status, err)
	}
	var unmet []string
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "[+]") {
			unmet = append(unmet, line)
		}
	}
	return fmt.Errorf("%s: %s", response.Status, strings.Join(unmet, ", "))
}

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

// probe asks a URL until it answers 200.
type probe struct {
	client *http.Client
	url    string
}

// wait returns when the URL answers 200. It gives up when the context ends or
// one of the processes does; the error holds the last answer or the process's
// last words.
func (p probe) wait(ctx context.Context, processes ...*process) error {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	last := fmt.Errorf("no request made yet")
	for {
		err := p.once(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil { // else the request was only cut short
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
	// The API server's answer lists its checks; those that pass start with [+].
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

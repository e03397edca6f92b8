package main

import (
	"fmt"
	"io"
	"time"
)

type measure_ string

const (
	startSeconds  measure_ = "startSeconds"
	startCPU      measure_ = "startCPUms"
	startRequests measure_ = "startRequests"
	liveMemory    measure_ = "liveKiB"
	residentSize  measure_ = "residentKiB"
	holdSeconds   measure_ = "holdCPUmsPerHour"
)

type results struct {
	size    size
	machine string
	took    time.Duration
}

func (r *results) add(m measure_, who string, v float64) { fmt.Println(m, who, v) }
func (r *results) print(w io.Writer) error               { return nil }
func (r *results) writePage(path string) error           { return nil }
func (r *results) verdict() error                        { return nil }

// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// State is the state of a running cluster, or of a further node of the cluster.
type State struct {
	// InitPID is the process id of process 1 of the namespaces: on the machine, or for a further node in the cluster's PID
	// namespace.
	InitPID int `json:"initPID"`
	// Spec is the description of the cluster or of the node.
	Spec Spec `json:"spec"`
}

// ErrNotRunning means that no cluster is running in the folder.
var ErrNotRunning = errors.New("no cluster runs there")

// ReadState returns the state of the running cluster of a folder. If there is none, the error is ErrNotRunning.
func ReadState(runDir string) (State, error) {
	lock, err := tryLock(Paths(runDir).Lock())
	if err == nil {
		lock.Close()
		return State{}, fmt.Errorf("look for the cluster of %s: %w", runDir, ErrNotRunning)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("look for the cluster of %s: %w", runDir, ErrNotRunning)
	}
	if !errors.Is(err, errLocked) {
		return State{}, err
	}
	state, err := readState(Paths(runDir).State())
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("look for the cluster of %s, which is starting or ending: %w", runDir, err)
	}
	return state, err
}

func readState(path string) (state State, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return State{}, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return State{}, fmt.Errorf("parse %s: %w", path, err)
	}
	return state, nil
}

func (s State) write(path string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("put state in place: %w", err)
	}
	return nil
}

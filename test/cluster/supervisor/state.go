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

// State says how to reach a running cluster.
type State struct {
	// InitPID is the process id, on the machine, of process 1 of the cluster's
	// namespaces.
	InitPID int `json:"initPID"`
}

// ErrNotRunning says that no cluster runs in the folder.
var ErrNotRunning = errors.New("no cluster runs there")

// ReadState returns the state of the cluster that runs in a folder. The error
// is ErrNotRunning if there is none.
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
	text, err := os.ReadFile(Paths(runDir).State())
	if err != nil {
		return State{}, fmt.Errorf("look for the cluster of %s, which is starting or ending: %w", runDir, err)
	}
	var state State
	if err := json.Unmarshal(text, &state); err != nil {
		return State{}, fmt.Errorf("parse %s: %w", Paths(runDir).State(), err)
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

// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const helperVariable = "FSUSER_TEST_ORPHAN_HELPER"

// TestChildrenDieWithTheProcess starts a control plane in another process and kills that process with SIGKILL, as `go
// test` does after a timeout.
func TestChildrenDieWithTheProcess(t *testing.T) {
	if os.Getenv(helperVariable) != "" {
		orphanHelper(t)
		return
	}
	requireBinaries(t)
	ctx := testContext(t)
	helper := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$")
	helper.Env = append(os.Environ(), helperVariable+"=1", "TMPDIR="+t.TempDir())
	output, err := helper.StdoutPipe()
	if err != nil {
		t.Fatalf("make pipe: %v", err)
	}
	if err := helper.Start(); err != nil {
		t.Fatalf("start helper: %v", err)
	}
	var etcd, apiServer int
	line, readErr := bufio.NewReader(output).ReadString('\n')
	_, scanErr := fmt.Sscanf(line, "pids %d %d\n", &etcd, &apiServer)
	_ = helper.Process.Kill() // This is the tested event.
	_ = helper.Wait()
	if readErr != nil || scanErr != nil {
		t.Fatalf("read process ids from helper: got %q: %v, %v", line, readErr, scanErr)
	}

	t.Cleanup(func() { // for the case that the kernel did not kill them
		for _, pid := range []int{apiServer, etcd} {
			if alive(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); alive(etcd) || alive(apiServer); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("10 s after the process was killed: etcd lives: %t, kube-apiserver lives: %t", alive(etcd),
				alive(apiServer))
		}
	}
}

// orphanHelper starts a control plane, prints its process ids and waits until it is killed.
func orphanHelper(t *testing.T) {
	cp, err := Start(t.Context(), Options{})
	if err != nil {
		fmt.Println(err)
		t.Fatal(err)
	}
	defer cp.Stop()
	fmt.Printf("pids %d %d\n", cp.etcd.cmd.Process.Pid, cp.apiServer.cmd.Process.Pid)
	<-t.Context().Done() // ends only with the timeout of the test
}

//go:build !linux

package cli

import "os/exec"

// startAndWait starts a child and waits for its end. started gets what Start
// answered; ended is called only if that was nil.
func startAndWait(cmd *exec.Cmd, started chan<- error, ended func(error)) {
	err := cmd.Start()
	started <- err
	if err == nil {
		ended(cmd.Wait())
	}
}

package cli

import (
	"os/exec"
	"runtime"
	"syscall"
)

// startAndWait starts a child that a terminal's Ctrl-C does not reach, because
// its parent stops it, and that ends with its parent, however that ends. The
// kernel ties the latter to the thread that started the child, so this goroutine
// keeps its thread until then. started gets what Start answered; ended is called
// only if that was nil.
func startAndWait(cmd *exec.Cmd, started chan<- error, ended func(error)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	err := cmd.Start()
	started <- err
	if err == nil {
		ended(cmd.Wait())
	}
}

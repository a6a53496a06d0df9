// Command cairn is a distributed, S3-compatible object store in one binary: see README.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"cairn/cmd/cairn/cli"
	"cairn/server"
	"cairn/server/config"
	"cairn/server/status"
)

func main() {
	// The first signal ends ctx; the second, no longer caught, ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := cli.Run(ctx, os.Args[1:], cli.Deps{
		Version: version(), Stdout: os.Stdout, Stderr: os.Stderr, Now: time.Now,
		Serve: serve, VerifyOffline: verifyOffline,
	})
	os.Exit(code)
}

func serve(ctx context.Context, cfg config.Config, logger *slog.Logger) error {
	s, err := server.New(cfg, server.Env{Logger: logger, Version: version()})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func verifyOffline(ctx context.Context, cfg config.Config, progress func(status.Progress)) (status.Report, error) {
	return server.VerifyOffline(ctx, cfg, progress)
}

// version is the release, or the commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "dev"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v += "-" + s.Value[:12]
			}
		}
	}
	return fmt.Sprintf("%s (%s, %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

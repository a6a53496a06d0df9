package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"cairn/server/config"
)

type serverCmd struct {
	Config config.Config `embed:""`
}

// Help is shown under the usage line.
func (serverCmd) Help() string {
	return `Serves S3 until SIGINT or SIGTERM, then lets requests under way finish.

The first start draws the root access key and secret key, prints them once and keeps them in DIR/credentials.json, readable by you only. CAIRN_ROOT_ACCESS_KEY and CAIRN_ROOT_SECRET_KEY take their place; they are no flags because a list of processes shows flags.

Each setting comes from its flag, else its CAIRN_ variable, else the file, else the default. A file looks like this:

  listen: :9000
  drives:
    - {path: /mnt/disk1, zone: a}
    - {path: /mnt/disk2, zone: b}
    - {path: /mnt/disk3, zone: c}
  accounts:
    - {name: backup, access_key: BACKUPKEY, secret_key: a-long-secret}

Examples:

  cairn server
  cairn server --zones 3 --drives-per-zone 2
  cairn server --drive path=/mnt/disk1,zone=a --drive path=/mnt/disk2,zone=b --drive path=/mnt/disk3,zone=c
  cairn server --listen :443 --tls-cert s3.crt --tls-key s3.key --domain s3.example.com`
}

// stopGrace is how much longer than its own bound a stop may take before the process gives up on it.
const stopGrace = 10 * time.Second

// Run is called by kong.
func (s *serverCmd) Run(ctx context.Context, d Deps) error {
	cfg := s.Config
	if err := cfg.Complete(); err != nil {
		return usage(err)
	}
	keys, created, err := cfg.Root()
	if err != nil {
		return err
	}
	ownKeys := cfg.RootAccessKey == ""
	cfg.RootAccessKey, cfg.RootSecretKey = keys.AccessKey, keys.SecretKey
	if err := cfg.Validate(); err != nil { // the drawn keys against the accounts'
		return usage(err)
	}
	drives, err := cfg.DriveList()
	if err != nil {
		return err
	}
	greet(d.Stdout, &cfg, drives, created, ownKeys)
	return serve(ctx, d, cfg, newLogger(d.Stderr, &cfg), stopGrace)
}

// serve runs the server and, once ctx ended, waits no longer than the configured bound and the grace.
func serve(ctx context.Context, d Deps, cfg config.Config, logger *slog.Logger, grace time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx, cfg, logger) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	logger.Info("stopping", "bound", cfg.ShutdownBound)
	timer := time.NewTimer(cfg.ShutdownBound + grace)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("not stopped after %s: giving up (nothing that was acknowledged is lost)", cfg.ShutdownBound+grace)
	}
}

func greet(w io.Writer, cfg *config.Config, drives []config.DriveSpec, created, ownKeys bool) {
	zones := map[string]bool{}
	for _, d := range drives {
		zones[d.Zone] = true
	}
	endpoint := endpoint(cfg)
	fmt.Fprintf(w, "cairn: S3 on %s, admin on http://%s, %s in %s, data in %s\n", endpoint, cfg.AdminListen,
		count(len(drives), "drive"), count(len(zones), "zone"), cfg.DataDir)
	file := filepath.Join(cfg.DataDir, config.CredentialsFile)
	switch {
	case created:
		fmt.Fprintf(w, `
First start. The root keys, printed this once and kept in %s for you only:

    access key  %s
    secret key  %s

To use it with aws-cli, paste these three lines:

    export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s
    export AWS_ENDPOINT_URL=%s AWS_DEFAULT_REGION=%s
    aws s3 ls

`, file, cfg.RootAccessKey, cfg.RootSecretKey, cfg.RootAccessKey, cfg.RootSecretKey, endpoint, cfg.Region)
	case ownKeys:
		fmt.Fprintf(w, "cairn: the root keys are in %s\n", file)
	default:
		fmt.Fprintf(w, "cairn: the root keys are those you set (access key %s)\n", cfg.RootAccessKey)
	}
}

// endpoint is the S3 address as a client on this machine would write it.
func endpoint(cfg *config.Config) string {
	scheme := "http"
	if cfg.TLSCert != "" {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return scheme + "://" + cfg.Listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func newLogger(w io.Writer, cfg *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.LogLevel)) // checked by Validate
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

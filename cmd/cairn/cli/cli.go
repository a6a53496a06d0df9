// Package cli is the commands of the cairn binary: server, status, verify, cluster, lifecycle, usage, inventory, events, dev, health, version.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/alecthomas/kong"

	"cairn/server/admin"
	"cairn/server/config"
	"cairn/server/status"
)

// Exit codes.
const (
	ExitOK       = 0
	ExitFailed   = 1 // it could not be done
	ExitUsage    = 2 // wrong flags or configuration
	ExitProblems = 3 // a verification found problems
)

// Deps is what the commands stand on.
type Deps struct {
	Version string
	Stdout  io.Writer
	Stderr  io.Writer
	Now     func() time.Time
	// Executable is the binary that dev starts as each node; empty is the one that runs.
	Executable string
	// Serve runs a server until ctx ends and all is stopped.
	Serve func(ctx context.Context, cfg config.Config, logger *slog.Logger) error
	// VerifyOffline checks the drive folders of a store that no server has open.
	VerifyOffline func(ctx context.Context, cfg config.Config, progress func(status.Progress)) (status.Report, error)
}

type commands struct {
	Server    serverCmd    `cmd:"" help:"Serve S3 until stopped."`
	Status    statusCmd    `cmd:"" help:"Show drives, zones, metadata and redundancy of a running server."`
	Verify    verifyCmd    `cmd:"" help:"Prove that everything stored has all its shards, or list what has not."`
	Cluster   clusterCmd   `cmd:"" help:"What concerns several nodes: join tokens, ranges of the metadata."`
	Lifecycle lifecycleCmd `cmd:"" help:"What lifecycle rules did, have to do and would do."`
	Usage     usageCmd     `cmd:"" help:"Show what is stored, by bucket and storage class."`
	Inventory inventoryCmd `cmd:"" help:"List a bucket as CSV, as S3 Inventory does."`
	Events    eventsCmd    `cmd:"" help:"Where events of objects go, how far they came, and to read or send them again."`
	Dev       devCmd       `cmd:"" help:"Run a whole cluster on this machine, for trying and testing."`
	Health    healthCmd    `cmd:"" help:"Exit code 0 if a server is ready, for health checks."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// exitPanic carries kong's wish to exit (after --help) up to Run.
type exitPanic int

// codedError is an error with an exit code other than ExitFailed.
type codedError struct {
	code int
	err  error // nil prints nothing
}

func (e *codedError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &codedError{ExitUsage, err}
}

// Run carries out the command line args (without the program's name) and answers the exit code.
func Run(ctx context.Context, args []string, d Deps) (code int) {
	defer func() {
		if p := recover(); p != nil {
			e, ok := p.(exitPanic)
			if !ok {
				panic(p)
			}
			code = int(e)
		}
	}()
	if len(args) == 0 {
		args = []string{"--help"}
	}
	options := append(config.Options(), kong.Name("cairn"), kong.Description(description),
		kong.Writers(d.Stdout, d.Stderr), kong.Exit(func(code int) { panic(exitPanic(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(d))
	parser, err := kong.New(&commands{}, options...)
	if err != nil {
		fmt.Fprintf(d.Stderr, "cairn: %v\n", err)
		return ExitFailed
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(d.Stderr, "cairn: %v\n(cairn --help, cairn COMMAND --help)\n", err)
		return ExitUsage
	}
	return report(parsed.Run(), d.Stderr)
}

func report(err error, stderr io.Writer) int {
	if err == nil {
		return ExitOK
	}
	code := ExitFailed
	var coded *codedError
	if errors.As(err, &coded) {
		code = coded.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(stderr, "cairn: %s\n", text)
	}
	return code
}

const description = `cairn is a distributed, S3-compatible object store.

Try it:

  cairn server                                   one drive, data in ./data
  cairn server --zones 3 --drives-per-zone 2     six drives in three zones
  cairn dev                                      six nodes in three zones
  cairn status
  cairn verify`

type versionCmd struct{}

// Run is called by kong.
func (versionCmd) Run(d Deps) error {
	_, err := fmt.Fprintf(d.Stdout, "cairn %s\n", d.Version)
	return err
}

// adminFlags find the server to ask; each is the server's own flag.
type adminFlags struct {
	File        config.FileFlag `name:"config" short:"c" env:"CAIRN_CONFIG" placeholder:"FILE" help:"The server's configuration file."`
	DataDir     string          `name:"data-dir" short:"d" env:"CAIRN_DATA_DIR" default:"${data_dir}" placeholder:"DIR" help:"The server's data folder, for its credentials.json (default ${data_dir})."`
	AdminListen string          `name:"admin-listen" env:"CAIRN_ADMIN_LISTEN" default:"${admin_listen}" placeholder:"HOST:PORT" help:"The server's admin address (default ${admin_listen})."`
}

func (f *adminFlags) client() (*admin.Client, error) {
	cfg := config.Default()
	cfg.File, cfg.DataDir, cfg.AdminListen = f.File, f.DataDir, f.AdminListen
	if err := cfg.Complete(); err != nil {
		return nil, usage(err)
	}
	return newClient(&cfg)
}

// newClient makes a client with the root keys; it never makes keys.
func newClient(cfg *config.Config) (*admin.Client, error) {
	keys := config.Credentials{AccessKey: cfg.RootAccessKey, SecretKey: cfg.RootSecretKey}
	if keys.AccessKey == "" {
		var err error
		if keys, err = config.ReadCredentials(cfg.DataDir); err != nil {
			return nil, fmt.Errorf("the root keys: %w; name the server's data folder with --data-dir, or set CAIRN_ROOT_ACCESS_KEY and CAIRN_ROOT_SECRET_KEY", err)
		}
	}
	client := adminAt(cfg.AdminListen)
	client.AccessKey, client.SecretKey = keys.AccessKey, keys.SecretKey
	return client, nil
}

// adminAt is a client without keys for the server with that admin address, which is asked on this machine unless it names another.
func adminAt(listen string) *admin.Client {
	base := listen
	if host, port, err := net.SplitHostPort(listen); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		base = net.JoinHostPort(host, port)
	}
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	return &admin.Client{Base: "http://" + base, HTTP: &http.Client{Transport: transport}}
}

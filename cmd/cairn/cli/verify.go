package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"cairn/server/config"
	"cairn/server/status"
)

type verifyCmd struct {
	Config  config.Config `embed:""`
	Offline bool          `name:"offline" help:"Open the drive folders directly. Without it the running server is asked, and the folders are opened only if none answers."`
	JSON    bool          `name:"json" help:"Print the report as JSON, for programs."`
}

// Help is shown under the usage line.
func (verifyCmd) Help() string {
	return `An independent proof from the drives up and from the metadata down: every version of every object has all its shards, in the right zones, with the right checksums; no shard is unreferenced; every row is readable on a quorum. It changes nothing.

Give it the server's own flags or configuration file, so that it finds the drives.

Exit code 0: clean. 3: problems, listed one a line. 1: it could not be done. 2: wrong usage.`
}

// Run is called by kong.
func (v *verifyCmd) Run(ctx context.Context, d Deps) error {
	cfg := v.Config
	if err := cfg.Complete(); err != nil {
		return usage(err)
	}
	report, err := v.verify(ctx, &cfg, d)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if v.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return err
		}
	} else {
		report.Print(d.Stdout)
	}
	if report.Found > 0 {
		return &codedError{code: ExitProblems}
	}
	return nil
}

func (v *verifyCmd) verify(ctx context.Context, cfg *config.Config, d Deps) (status.Report, error) {
	progress := printProgress(d.Stderr, d.Now)
	if v.Offline {
		return d.VerifyOffline(ctx, *cfg, progress)
	}
	client, err := newClient(cfg)
	if errors.Is(err, fs.ErrNotExist) { // nobody to ask without keys; a server on these folders would hold their lock
		return d.VerifyOffline(ctx, *cfg, progress)
	}
	if err != nil {
		return status.Report{}, err
	}
	report, err := client.Verify(ctx, progress)
	if errors.Is(err, syscall.ECONNREFUSED) {
		fmt.Fprintf(d.Stderr, "no server answers at %s: opening the drive folders\n", client.Base)
		return d.VerifyOffline(ctx, *cfg, progress)
	}
	if err != nil {
		return report, explain(client, err)
	}
	return report, nil
}

// progressEvery is how often people see how far it is.
const progressEvery = 5 * time.Second

func printProgress(w io.Writer, now func() time.Time) func(status.Progress) {
	last := now()
	return func(p status.Progress) {
		if t := now(); t.Sub(last) >= progressEvery {
			last = t
			fmt.Fprintf(w, "verify: %s: %d objects, %d shards, %s read, %d problems\n", p.Phase, p.Objects, p.Shards, status.Bytes(p.Bytes), p.Found)
		}
	}
}

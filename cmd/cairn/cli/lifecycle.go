package cli

import (
	"context"
	"encoding/json"

	"cairn/server/status"
)

type lifecycleCmd struct {
	Status   lifecycleStatusCmd   `cmd:"" help:"Show what lifecycle rules did, what is due and how late it is."`
	Simulate lifecycleSimulateCmd `cmd:"" help:"Show what rules would do to a bucket, at a time, without doing it."`
}

type lifecycleStatusCmd struct {
	Flags adminFlags `embed:""`
	JSON  bool       `name:"json" help:"Print JSON, for programs."`
}

// Help is shown under the usage line.
func (lifecycleStatusCmd) Help() string {
	return `Asks the server's admin address with the root keys; any node answers for all. Each node acts by the rules for the ranges of the metadata that it leads. Rules that did nothing since the start and have nothing due are not listed.`
}

// Run is called by kong.
func (s *lifecycleStatusCmd) Run(ctx context.Context, d Deps) error {
	client, err := s.Flags.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	all, err := client.Lifecycle(ctx)
	if err != nil {
		return explain(client, err)
	}
	if s.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	}
	status.PrintLifecycle(d.Stdout, all, d.Now())
	return nil
}

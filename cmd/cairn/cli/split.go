package cli

import (
	"context"
	"errors"
	"fmt"
)

type splitCmd struct {
	Flags adminFlags `embed:""`
	Group uint64     `arg:"" name:"group" help:"The range, by the number of its group in status."`
}

// Help is shown under the usage line.
func (splitCmd) Help() string {
	return `Ranges of the metadata split by themselves when they have grown; this splits one in the middle now. Ask the node that leads the range.`
}

// Run is called by kong.
func (s *splitCmd) Run(ctx context.Context, d Deps) error {
	if s.Group < 2 {
		return usage(errors.New("group 1 is the system group, which is not a range"))
	}
	client, err := s.Flags.client()
	if err != nil {
		return err
	}
	child, err := client.Split(ctx, s.Group)
	if err != nil {
		return explain(client, err)
	}
	_, err = fmt.Fprintf(d.Stdout, "the upper half is group %d now\n", child)
	return err
}

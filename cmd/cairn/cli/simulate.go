package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cairn/server/admin"
	"cairn/server/status"
)

type lifecycleSimulateCmd struct {
	Flags       adminFlags `embed:""`
	Bucket      string     `arg:"" name:"bucket" help:"The bucket to look at."`
	At          string     `name:"at" placeholder:"DATE" help:"When: a date (midnight UTC) or a time like 2027-01-01T12:00:00Z; without it now."`
	Rules       string     `name:"rules" placeholder:"FILE" help:"Rules to try instead of those that the bucket has, in a file (- is the standard input): the XML that S3 takes, or the JSON that 'aws s3api put-bucket-lifecycle-configuration' takes."`
	MinimumSize string     `name:"transition-default-minimum-object-size" placeholder:"NAME" help:"With --rules: all_storage_classes_128K (the default) or varies_by_storage_class, as in aws-cli."`
	Examples    int        `name:"examples" default:"3" placeholder:"N" help:"Keys to name for each action of a rule (default 3)."`
	JSON        bool       `name:"json" help:"Print JSON, for programs."`
}

// Help is shown under the usage line.
func (lifecycleSimulateCmd) Help() string {
	return `Says what lifecycle rules would do at a time with what is stored now, by rule: what expires, what moves, what that costs, with examples. It decides with the code that the rules are carried out with, and changes nothing.

One look is simulated. What only follows from it, like the end of a delete marker whose last version expired, shows in a simulation for later. Bytes on drives are estimated from the plans of the classes. Early GB-days are what leaves its class before the class's minimum of days.`
}

// Run is called by kong.
func (s *lifecycleSimulateCmd) Run(ctx context.Context, d Deps) error {
	q := admin.SimulateQuery{Bucket: s.Bucket, Examples: s.Examples, MinimumSize: s.MinimumSize, At: d.Now()}
	switch {
	case s.Examples < 0 || s.Examples > admin.ExamplesMax:
		return usage(fmt.Errorf("--examples is %d: use a number up to %d", s.Examples, admin.ExamplesMax))
	case s.MinimumSize != "" && s.Rules == "":
		return usage(errors.New("--transition-default-minimum-object-size goes with --rules: the bucket's own rules have theirs"))
	}
	var err error
	if s.At != "" {
		if q.At, err = simulatedTime(s.At); err != nil {
			return usage(err)
		}
	}
	if s.Rules != "" {
		if q.Rules, err = readRules(s.Rules); err != nil {
			return err
		}
	}
	client, err := s.Flags.client()
	if err != nil {
		return err
	}
	last := d.Now()
	report, err := client.Simulate(ctx, q, func(p status.SimulationProgress) {
		if t := d.Now(); t.Sub(last) >= progressEvery {
			last = t
			fmt.Fprintf(d.Stderr, "simulate: %d rows\n", p.Rows)
		}
	})
	if err != nil {
		return explain(client, err)
	}
	if s.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	report.Print(d.Stdout)
	return nil
}

// simulatedTime reads a date or a time.
func simulatedTime(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("--at is %q: use a date like 2027-01-01 or a time like 2027-01-01T12:00:00Z", text)
	}
	return t, nil
}

// readRules reads a file of rules, or the standard input.
func readRules(name string) ([]byte, error) {
	in := os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	doc, err := io.ReadAll(io.LimitReader(in, admin.RulesBytesMax+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the rules: %w", err)
	case len(doc) > admin.RulesBytesMax:
		return nil, fmt.Errorf("the rules in %s are longer than %s", name, status.Bytes(admin.RulesBytesMax))
	case len(doc) == 0:
		return nil, fmt.Errorf("there are no rules in %s", name)
	}
	return doc, nil
}

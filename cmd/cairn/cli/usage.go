package cli

import (
	"context"
	"encoding/json"

	"cairn/server/admin"
	"cairn/server/status"
)

type usageCmd struct {
	Flags  adminFlags `embed:""`
	Bucket string     `arg:"" optional:"" name:"bucket" help:"Only this bucket."`
	JSON   bool       `name:"json" help:"Print lines of JSON, for programs: one for each bucket, and the sums last."`
}

// Help is shown under the usage line.
func (usageCmd) Help() string {
	return `Asks the server's admin address with the root keys; any node answers for all. Buckets come in order of their creation.

The figures are counters that change together with what they count, so this is cheap however much is stored. What is on drives is estimated from the plans of the classes; the last line measures it. Early GB-days are what was deleted, overwritten or moved before its class's minimum of days was over, and restored is what was asked back from the archives: both since the bucket was made.`
}

// Run is called by kong.
func (u *usageCmd) Run(ctx context.Context, d Deps) error {
	client, err := u.Flags.client()
	if err != nil {
		return err
	}
	if u.JSON {
		enc := json.NewEncoder(d.Stdout)
		total, err := client.Usage(ctx, u.Bucket, func(b *status.BucketUsage) error { return enc.Encode(admin.UsageLine{Bucket: b}) })
		if err != nil {
			return explain(client, err)
		}
		return enc.Encode(admin.UsageLine{Total: &total})
	}
	begun := false
	total, err := client.Usage(ctx, u.Bucket, func(b *status.BucketUsage) error {
		if !begun {
			begun = true
			status.UsageHeader(d.Stdout)
		}
		b.Print(d.Stdout)
		return nil
	})
	if err != nil {
		return explain(client, err)
	}
	if u.Bucket == "" {
		total.Print(d.Stdout)
	}
	return nil
}

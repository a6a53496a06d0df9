package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"cairn/server/admin"
	"cairn/server/status"
)

type inventoryCmd struct {
	Flags    adminFlags `embed:""`
	Bucket   string     `arg:"" name:"bucket" help:"The bucket to list."`
	Output   string     `name:"output" short:"o" placeholder:"FILE" help:"Write to this file, which appears once it is whole; without it to the standard output."`
	Versions string     `name:"versions" enum:"current,all" default:"current" help:"current: current versions. all: also noncurrent versions and delete markers."`
	Fields   []string   `name:"fields" placeholder:"NAME,..." help:"Columns besides Bucket and Key, by S3 Inventory's names; without it all there are."`
	Prefix   string     `name:"prefix" placeholder:"PREFIX" help:"Only keys that begin with this."`
	Header   bool       `name:"header" help:"Begin with a line that names the columns. S3's files have none."`
}

// Help is shown under the usage line.
func (inventoryCmd) Help() string {
	return `Lists every object as CSV in the columns and the quoting of S3 Inventory; keys are percent-encoded. Asks the server's admin address with the root keys; any node answers for all.

Columns: Bucket, Key, VersionId, IsLatest, IsDeleteMarker (these three with --versions all), Size, LastModifiedDate, ETag, StorageClass, IsMultipartUploaded, EncryptionStatus, ObjectLockRetainUntilDate, ObjectLockMode, ObjectLockLegalHoldStatus, IntelligentTieringAccessTier, ChecksumAlgorithm, ObjectOwner, LifecycleExpirationDate.`
}

// Run is called by kong.
func (i *inventoryCmd) Run(ctx context.Context, d Deps) error {
	client, err := i.Flags.client()
	if err != nil {
		return err
	}
	q := admin.InventoryQuery{Bucket: i.Bucket, Prefix: i.Prefix, All: i.Versions == "all", Fields: i.Fields, Header: i.Header}
	fetch := func(w io.Writer) error {
		to := &countedLines{w: w, to: d.Stderr, now: d.Now, last: d.Now()}
		rows, err := client.Inventory(ctx, q, to)
		if to.err != nil {
			return to.err
		}
		if err != nil {
			return explain(client, err)
		}
		fmt.Fprintf(d.Stderr, "inventory: %d rows\n", rows)
		return nil
	}
	if i.Output == "" || i.Output == "-" || i.Output == "/dev/stdout" {
		return fetch(d.Stdout)
	}
	return writeWhole(i.Output, fetch)
}

// countedLines passes lines on and says now and then how many there were.
type countedLines struct {
	w           io.Writer
	to          io.Writer
	now         func() time.Time
	last        time.Time
	rows, bytes int64
	err         error // of w
}

func (c *countedLines) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.rows += int64(bytes.Count(p[:n], []byte{'\n'}))
	c.bytes += int64(n)
	if err != nil {
		c.err = err
	}
	if t := c.now(); t.Sub(c.last) >= progressEvery {
		c.last = t
		fmt.Fprintf(c.to, "inventory: %d rows, %s\n", c.rows, status.Bytes(c.bytes))
	}
	return n, err
}

// writeWhole makes a file that is there only when all of it is: it is written beside it, synced and renamed. What is there and is no file, as a
// pipe or a device, is written to.
func writeWhole(name string, write func(io.Writer) error) (err error) {
	if to, err := filepath.EvalSymlinks(name); err == nil {
		name = to
	}
	switch there, err := os.Stat(name); {
	case err != nil: // it is made
	case there.IsDir():
		return fmt.Errorf("%s is a folder: name a file in it", name)
	case !there.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	buf := bufio.NewWriterSize(f, 256<<10)
	if err := write(buf); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

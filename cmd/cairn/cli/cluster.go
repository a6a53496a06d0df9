package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"cairn/server/config"
)

type clusterCmd struct {
	Token tokenCmd `cmd:"" help:"Make tokens that let nodes join."`
	Split splitCmd `cmd:"" help:"Split a range of the metadata now."`
	Leave leaveCmd `cmd:"" help:"Empty a node for good and remove it."`
}

type tokenCmd struct {
	Flags adminFlags    `embed:""`
	Valid time.Duration `name:"valid" default:"1h" placeholder:"DURATION" help:"How long a token is good (1h)."`
	Count *int          `name:"count" placeholder:"N" help:"How many to print (1)."`
	Wait  time.Duration `name:"wait" placeholder:"DURATION" help:"Ask again for so long until the server answers."`
	Out   []string      `name:"out" placeholder:"FILE" help:"Write a token to this file, readable by you only, instead of printing it; a file that has one is left alone. Repeat it for more."`
}

// tokensMax bounds how many tokens one call makes.
const tokensMax = 100

// Help is shown under the usage line.
func (tokenCmd) Help() string {
	return `Asks a member of the cluster with the root keys. A token lets one node join, once; it names the cluster's addresses and certificate authority, so the node needs nothing else:

  cairn cluster token > n2.token          on a member; carry the file to the new node
  cairn server --node n2 --zone b --join-token @n2.token --drive path=/mnt/disk1`
}

// Run is called by kong.
func (t *tokenCmd) Run(ctx context.Context, d Deps) error {
	count := 1
	if t.Count != nil {
		if len(t.Out) > 0 {
			return usage(errors.New("--count is for tokens that are printed; each --out names the file of one token, so repeat --out instead"))
		}
		count = *t.Count
	}
	if count < 1 || count > tokensMax || len(t.Out) > tokensMax {
		return usage(fmt.Errorf("--count is %d and --out is given %d times: 1 to %d tokens at once", count, len(t.Out), tokensMax))
	}
	client, err := t.Flags.client()
	if err != nil {
		return err
	}
	ask := func() (token string, err error) {
		err = retry(ctx, d.Now, t.Wait, statusTimeout, func(ctx context.Context) error {
			token, err = client.NewToken(ctx, t.Valid)
			return err
		})
		if err != nil {
			return "", explain(client, err)
		}
		return token, nil
	}
	if len(t.Out) > 0 {
		for _, path := range t.Out {
			if err := tokenFile(path, ask); err != nil {
				return err
			}
		}
		return nil
	}
	for range count {
		token, err := ask()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(d.Stdout, token); err != nil {
			return err
		}
	}
	return nil
}

// tokenFile puts a token into a file that has none yet; the name appears with the whole token behind it.
func tokenFile(path string, ask func() (string, error)) error {
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	token, err := ask()
	if err != nil {
		return err
	}
	tmp := path + ".new"
	os.Remove(tmp) // of a run that was cut off
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, token)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

type healthCmd struct {
	File        config.FileFlag `name:"config" short:"c" env:"CAIRN_CONFIG" placeholder:"FILE" help:"The server's configuration file, for its admin address."`
	AdminListen string          `name:"admin-listen" env:"CAIRN_ADMIN_LISTEN" default:"${admin_listen}" placeholder:"HOST:PORT" help:"The server's admin address (default ${admin_listen})."`

	Wait time.Duration `name:"wait" placeholder:"DURATION" help:"Ask again for so long until the server is ready."`
}

// Help is shown under the usage line.
func (healthCmd) Help() string {
	return `For health checks of containers: exit code 0 if the server at the admin address serves reads and writes, else 1 with the reason. It needs no keys.`
}

// healthTimeout is how long one question may take.
const healthTimeout = 5 * time.Second

// Run is called by kong.
func (h *healthCmd) Run(ctx context.Context, d Deps) error {
	return retry(ctx, d.Now, h.Wait, healthTimeout, adminAt(h.AdminListen).Ready)
}

// retry calls fn, each time for at most timeout, until it succeeds, wait has passed or ctx ends.
func retry(ctx context.Context, now func() time.Time, wait, timeout time.Duration, fn func(context.Context) error) error {
	for end := now().Add(wait); ; {
		try, cancel := context.WithTimeout(ctx, timeout)
		err := fn(try)
		cancel()
		if err == nil || ctx.Err() != nil || !now().Before(end) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"cairn/server/admin"
)

type statusCmd struct {
	Flags adminFlags `embed:""`
	JSON  bool       `name:"json" help:"Print JSON, for programs."`
}

// Help is shown under the usage line.
func (statusCmd) Help() string {
	return `Asks the server's admin address with the root keys. What needs attention is in capitals or behind an exclamation mark.`
}

const statusTimeout = 30 * time.Second

// Run is called by kong.
func (s *statusCmd) Run(ctx context.Context, d Deps) error {
	client, err := s.Flags.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := client.Status(ctx)
	if err != nil {
		return explain(client, err)
	}
	if s.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(st)
	}
	st.Print(d.Stdout, d.Now())
	return nil
}

// explain says what to do about a server that did not answer or refused.
func explain(c *admin.Client, err error) error {
	var refused *admin.RefusedError
	if errors.As(err, &refused) {
		if refused.Status == http.StatusUnauthorized {
			return fmt.Errorf("the server at %s refuses these root keys: is it the server of this data folder? Name its folder with --data-dir", c.Base)
		}
		return fmt.Errorf("%s: %w", c.Base, err)
	}
	return fmt.Errorf("no answer from %s: %w; is the server running, and is that its --admin-listen?", c.Base, err)
}

package cli

import (
	"context"
	"fmt"
)

type leaveCmd struct {
	Flags adminFlags `embed:""`
	Node  string     `arg:"" name:"node" help:"The node, by its name in status."`
	Stay  bool       `name:"stay" help:"Take it back: the node stays."`
}

// Help is shown under the usage line.
func (leaveCmd) Help() string {
	return `Empties a node for good, running or lost, and then removes it from the cluster. Ask any other node.

What lies there is moved, or made again from the other shards, on other drives of
its zone: they must have the room, and each object needs a drive of its own for each
of its shards. Status says what is there still, on any node. When status does not
name the node any more, stop it; its data folder is of no use any more. Placement
groups that are as wide as the cluster (those for cold classes) use every drive: a
node with a place in one stays listed as leaving.`
}

// Run is called by kong.
func (l *leaveCmd) Run(ctx context.Context, d Deps) error {
	client, err := l.Flags.client()
	if err != nil {
		return err
	}
	if err := client.Leave(ctx, l.Node, !l.Stay); err != nil {
		return explain(client, err)
	}
	if l.Stay {
		_, err = fmt.Fprintf(d.Stdout, "node %s stays\n", l.Node)
	} else {
		_, err = fmt.Fprintf(d.Stdout, "node %s is leaving: cairn status says how far it is\n", l.Node)
	}
	return err
}

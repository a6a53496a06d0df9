package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"cairn/server/admin"
	"cairn/server/status"
	"cairn/server/targets"
)

type eventTargetCmd struct {
	Add    targetAddCmd    `cmd:"" help:"Set a target up."`
	List   targetListCmd   `cmd:"" help:"Show the targets and their settings."`
	Test   targetTestCmd   `cmd:"" help:"Send a target a test message."`
	Remove targetRemoveCmd `cmd:"" help:"Forget a target."`
	Kinds  targetKindsCmd  `cmd:"" help:"Show the kinds of targets and what each can be told."`
}

type targetAddCmd struct {
	Flags       adminFlags    `embed:""`
	Name        string        `arg:"" name:"name" help:"Its name, with which ARNs in notification configurations end."`
	Kind        string        `arg:"" name:"kind" help:"What it is, see 'cairn events target kinds'."`
	Set         []string      `name:"set" sep:"none" placeholder:"NAME=VALUE" help:"A setting. Repeat it for more."`
	Secret      []string      `name:"secret" sep:"none" placeholder:"NAME=@FILE|-|env:VAR" help:"A setting that is a secret: from a file, the standard input or a variable, without the last line's end. Repeat it for more."`
	WhenFull    string        `name:"when-full" enum:"drop,hold" default:"drop" help:"When too many events wait. drop: the oldest are given up. hold: requests that would make another one are refused (503 SlowDown)."`
	QueueMax    uint64        `name:"queue-max" placeholder:"N" help:"How many events may wait for it in one range of the metadata (10 million)."`
	MaxAge      time.Duration `name:"max-age" placeholder:"DURATION" help:"Give events up that waited so long (168h)."`
	CloudEvents bool          `name:"cloudevents" help:"Send CloudEvents 1.0 instead of S3's records."`
	Replace     bool          `name:"replace" help:"Take the place of the target of that name, with all its settings and secrets."`
}

// Help is shown under the usage line.
func (targetAddCmd) Help() string {
	return `Nothing is sent yet: 'cairn events target test NAME' tries it. A bucket's notification configuration names the target by an ARN whose region and account do not matter, as arn:aws:sqs:us-east-1:000000000000:NAME; the target named default gets what goes to EventBridge.

  cairn events target add hooks webhook --set url=https://example.com/s3 --secret secret=@hooks.key
  cairn events target add default log          keeps events for 'cairn events tail'`
}

// Run is called by kong.
func (a *targetAddCmd) Run(ctx context.Context, d Deps) error {
	spec := &admin.TargetSpec{
		Name: a.Name, Kind: a.Kind, WhenFull: a.WhenFull, QueueMax: a.QueueMax, CloudEvents: a.CloudEvents, Replace: a.Replace,
		Settings: map[string]string{}, Secrets: map[string]string{},
	}
	if a.MaxAge < 0 {
		return usage(fmt.Errorf("--max-age is %s: use a duration like 24h", a.MaxAge))
	}
	if a.MaxAge > 0 {
		spec.MaxAge = a.MaxAge.String()
	}
	if err := a.settings(spec); err != nil {
		return usage(err)
	}
	if err := a.secrets(spec, os.Stdin); err != nil {
		return err
	}
	client, err := a.Flags.client()
	if err != nil {
		return err
	}
	if err := client.PutEventTarget(ctx, spec); err != nil {
		return explainEvents(client, err)
	}
	_, err = fmt.Fprintf(d.Stdout, "target %s is set up: try it with cairn events target test %s\n", a.Name, a.Name)
	return err
}

// settings takes in what --set says. Secrets are refused: the list of processes shows flags to everyone.
func (a *targetAddCmd) settings(spec *admin.TargetSpec) error {
	for _, text := range a.Set {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return fmt.Errorf("--set %s: want NAME=VALUE; cairn events target kinds says which there are", text)
		}
		if _, twice := spec.Settings[name]; twice {
			return fmt.Errorf("--set %s is given twice", name)
		}
		if isSecret(a.Kind, name) {
			return fmt.Errorf("%s is a secret, which a list of processes would show: give it as --secret %s=@FILE, %s=- (standard input) or %s=env:VARIABLE", name, name, name, name)
		}
		spec.Settings[name] = value
	}
	return nil
}

func isSecret(kind, setting string) bool {
	return slices.ContainsFunc(targets.Kinds(), func(k targets.Kind) bool {
		return k.Name == kind && slices.ContainsFunc(k.Settings, func(s targets.Setting) bool { return s.Secret && s.Name == setting })
	})
}

// secrets reads what --secret names. Errors say where a secret was looked for, never what it is.
func (a *targetAddCmd) secrets(spec *admin.TargetSpec, stdin io.Reader) error {
	read := false
	for _, text := range a.Secret {
		name, from, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return usage(errors.New("--secret wants NAME=@FILE, NAME=- or NAME=env:VARIABLE"))
		}
		if _, twice := spec.Secrets[name]; twice {
			return usage(fmt.Errorf("--secret %s is given twice", name))
		}
		var secret []byte
		var err error
		variable, isVar := strings.CutPrefix(from, "env:")
		path, isFile := strings.CutPrefix(from, "@")
		switch {
		case isVar:
			value, set := os.LookupEnv(variable)
			if !set {
				return fmt.Errorf("--secret %s: the variable %s is not set", name, variable)
			}
			secret = []byte(value)
		case isFile:
			if secret, err = readSecret(path); err != nil {
				return fmt.Errorf("--secret %s: %w", name, err)
			}
		case from == "-" && !read:
			read = true
			if secret, err = io.ReadAll(io.LimitReader(stdin, targets.SettingMax+1)); err != nil {
				return fmt.Errorf("--secret %s: the standard input: %w", name, err)
			}
		case from == "-":
			return usage(errors.New("--secret: only one secret can come from the standard input"))
		default:
			return usage(fmt.Errorf("--secret %s: want %s=@FILE, %s=- (standard input) or %s=env:VARIABLE, since a list of processes would show the secret itself", name, name, name, name))
		}
		spec.Secrets[name] = strings.TrimSuffix(strings.TrimSuffix(string(secret), "\n"), "\r")
	}
	return nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, targets.SettingMax+1)) // one that is too long is refused by the server
}

type targetListCmd struct {
	Flags adminFlags `embed:""`
	JSON  bool       `name:"json" help:"Print JSON, for programs."`
}

// Run is called by kong.
func (l *targetListCmd) Run(ctx context.Context, d Deps) error {
	client, err := l.Flags.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	all, err := client.EventTargets(ctx)
	if err != nil {
		return explain(client, err)
	}
	if l.JSON {
		enc := json.NewEncoder(d.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	}
	status.PrintTargets(d.Stdout, all)
	return nil
}

type targetTestCmd struct {
	Flags adminFlags `embed:""`
	Name  string     `arg:"" name:"name" help:"The target."`
}

// Help is shown under the usage line.
func (targetTestCmd) Help() string {
	return `The server connects to the target, looks whether its queue, topic or table is there, and sends a test message. Exit code 0 if the target took it. To a target of kind log nothing is sent.`
}

// Run is called by kong.
func (t *targetTestCmd) Run(ctx context.Context, d Deps) error {
	client, err := t.Flags.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := client.TestEventTarget(ctx, t.Name); err != nil {
		return explainEvents(client, err)
	}
	all, err := client.EventTargets(ctx)
	if err != nil {
		return explainEvents(client, err)
	}
	if slices.ContainsFunc(all, func(row status.EventTarget) bool { return row.Name == t.Name && row.Kind == targets.LogKind }) {
		_, err = fmt.Fprintf(d.Stdout, "target %s is of kind %s: nothing is sent to it; read its events with cairn events tail\n", t.Name, targets.LogKind)
		return err
	}
	_, err = fmt.Fprintf(d.Stdout, "target %s took a test message\n", t.Name)
	return err
}

type targetRemoveCmd struct {
	Flags adminFlags `embed:""`
	Name  string     `arg:"" name:"name" help:"The target."`
	Force bool       `name:"force" help:"Also if events wait for it, dead letters are kept for it or buckets name it: those events, the dead letters, and what such rules still make, are dropped. Also drops the dead letters of a target that is gone."`
}

// Run is called by kong.
func (r *targetRemoveCmd) Run(ctx context.Context, d Deps) error {
	client, err := r.Flags.client()
	if err != nil {
		return err
	}
	if err := client.RemoveEventTarget(ctx, r.Name, r.Force); err != nil {
		return explainEvents(client, err)
	}
	_, err = fmt.Fprintf(d.Stdout, "target %s is removed\n", r.Name)
	return err
}

type targetKindsCmd struct {
	Kind string `arg:"" optional:"" name:"kind" help:"Only this kind."`
}

// Run is called by kong.
func (k *targetKindsCmd) Run(d Deps) error {
	all := targets.Kinds()
	if k.Kind == "" {
		for _, kind := range all {
			fmt.Fprintf(d.Stdout, "%-10s %s\n", kind.Name, kind.Help)
		}
		_, err := fmt.Fprintln(d.Stdout, "\nWhat one can be told: cairn events target kinds KIND")
		return err
	}
	var names []string
	for _, kind := range all {
		if kind.Name == k.Kind {
			printKind(d.Stdout, &kind)
			return nil
		}
		names = append(names, kind.Name)
	}
	return usage(fmt.Errorf("there is no kind %q: there are %s", k.Kind, strings.Join(names, ", ")))
}

func printKind(w io.Writer, kind *targets.Kind) {
	fmt.Fprintf(w, "%s: %s\n", kind.Name, kind.Help)
	for _, s := range kind.Settings {
		var notes []string
		if s.Required {
			notes = append(notes, "needed")
		}
		if s.Secret {
			notes = append(notes, "secret")
		}
		if s.Default != "" {
			notes = append(notes, "default "+s.Default)
		}
		note := ""
		if len(notes) > 0 {
			note = " (" + strings.Join(notes, ", ") + ")"
		}
		fmt.Fprintf(w, "  %-20s %s%s\n", s.Name, s.Help, note)
	}
}

package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// FileFlag is the flag that names the configuration file. The file is read when
// the flag is: what it says then stands behind flags and variables.
type FileFlag struct {
	path   string
	values map[string]string // of the keys that are flags too
	drives []DriveSpec
	rootAK string
	rootSK string
	accs   []Account
}

// Path is the file's name, or empty.
func (f FileFlag) Path() string { return f.path }

// UnmarshalText reads the file of that name.
func (f *FileFlag) UnmarshalText(text []byte) error {
	data, err := os.ReadFile(string(text))
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	*f = FileFlag{path: string(text)}
	return f.parse(data)
}

// BeforeResolve is called by kong once it knows the flag: it puts the file's
// values behind flags and variables. (kong would let a resolver win over
// variables, so a flag whose variable is set is left alone.)
func (FileFlag) BeforeResolve(ctx *kong.Context, trace *kong.Path) error {
	f, ok := ctx.FlagValue(trace.Flag).(FileFlag)
	if !ok {
		return fmt.Errorf("configuration file: unexpected flag %s", trace.Flag.Name)
	}
	ctx.AddResolver(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		for _, env := range flag.Envs {
			if _, ok := os.LookupEnv(env); ok {
				return nil, nil
			}
		}
		if v, ok := f.values[flag.Name]; ok {
			return v, nil
		}
		return nil, nil
	}))
	return nil
}

// fill gives c what only the file can say.
func (f *FileFlag) fill(c *Config) {
	if len(c.Drives) == 0 {
		c.Drives = f.drives
	}
	c.RootAccessKey, c.RootSecretKey = f.rootAK, f.rootSK
	c.Accounts = slices.Clone(f.accs)
}

// Keys are the keys that a configuration file may have, in the order of Config.
func Keys() []string {
	var keys []string
	for field := range reflect.TypeFor[Config]().Fields() {
		key := field.Tag.Get("key")
		if key == "" {
			key = field.Tag.Get("name")
		}
		switch key {
		case "config":
		case "drive", "domain": // lists: the plural reads better
			keys = append(keys, key+"s")
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

func (f *FileFlag) parse(data []byte) error {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.values = map[string]string{}
	for _, doc := range file.Docs {
		var pairs []*ast.MappingValueNode
		switch body := doc.Body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
		case *ast.MappingNode:
			pairs = body.Values
		case *ast.MappingValueNode:
			pairs = []*ast.MappingValueNode{body}
		default:
			return fmt.Errorf("%s: want lines of the form key: value", f.path)
		}
		for _, pair := range pairs {
			if err := f.set(pair); err != nil {
				return err
			}
		}
	}
	return nil
}

// set takes one key of the file.
func (f *FileFlag) set(pair *ast.MappingValueNode) error {
	key := pair.Key.GetToken().Value
	where := fmt.Sprintf("%s:%d: %s", f.path, pair.Key.GetToken().Position.Line, key)
	if !slices.Contains(Keys(), key) {
		return fmt.Errorf("%s is not a key%s; the keys are %s", where, suggest(key), strings.Join(Keys(), ", "))
	}
	if _, ok := f.values[key]; ok {
		return fmt.Errorf("%s is given twice", where)
	}
	var err error
	switch key {
	case "drives":
		f.drives, err = driveNodes(pair.Value)
	case "accounts":
		err = yaml.NodeToValue(pair.Value, &f.accs, yaml.Strict())
	case "domains":
		var list []string
		err = yaml.NodeToValue(pair.Value, &list, yaml.Strict())
		f.values["domain"] = strings.Join(list, ",")
	case "join":
		var list []string
		if _, ok := pair.Value.(*ast.SequenceNode); ok {
			err = yaml.NodeToValue(pair.Value, &list, yaml.Strict())
		} else {
			list = make([]string, 1)
			err = yaml.NodeToValue(pair.Value, &list[0])
		}
		f.values[key] = strings.Join(list, ",")
	case "root-access-key":
		err = yaml.NodeToValue(pair.Value, &f.rootAK, yaml.Strict())
	case "root-secret-key":
		err = yaml.NodeToValue(pair.Value, &f.rootSK, yaml.Strict())
	default:
		var v any
		if err = yaml.NodeToValue(pair.Value, &v); err == nil {
			switch v.(type) {
			case string, bool, int64, uint64, float64:
				f.values[key] = fmt.Sprint(v)
			default:
				return fmt.Errorf("%s: want one value", where)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return nil
}

// driveNodes reads a list of {path, zone, label} or of the flag's own words.
func driveNodes(node ast.Node) ([]DriveSpec, error) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		return nil, fmt.Errorf("want a list, each with path and zone")
	}
	var drives []DriveSpec
	for _, n := range list.Values {
		var d DriveSpec
		if s, ok := n.(*ast.StringNode); ok {
			if err := d.UnmarshalText([]byte(s.Value)); err != nil {
				return nil, err
			}
		} else if err := yaml.NodeToValue(n, (*plainDrive)(&d), yaml.Strict()); err != nil {
			return nil, err
		}
		drives = append(drives, d)
	}
	return drives, nil
}

// plainDrive is DriveSpec without UnmarshalText, which YAML would call.
type plainDrive DriveSpec

// suggest names the known key that begins or ends like the unknown one.
func suggest(key string) string {
	norm := func(s string) string {
		return strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(s))
	}
	k := norm(key)
	for _, known := range Keys() {
		if n := norm(known); n == k || n == k+"s" || n+"s" == k || (len(k) >= 4 && (strings.HasPrefix(n, k) || strings.HasSuffix(n, k))) {
			return fmt.Sprintf(" (did you mean %s?)", known)
		}
	}
	return ""
}

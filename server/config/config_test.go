package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// load parses args as a command line would.
func load(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	var cli struct {
		Config Config `embed:""`
	}
	p, err := kong.New(&cli, append(Options(), kong.Name("cairn"), kong.Exit(func(int) { t.Error("exit") }))...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse(args); err != nil {
		return cli.Config, err
	}
	return cli.Config, cli.Config.Complete()
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cairn.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsOfFlagsAreDefault(t *testing.T) {
	got, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	got.File = FileFlag{}
	if want := Default(); !reflect.DeepEqual(got, want) {
		t.Fatalf("without flags:\n%+v\nDefault:\n%+v", got, want)
	}
}

func TestPrecedence(t *testing.T) {
	f := file(t, "region: from-file\nlisten: 127.0.0.1:1111\nzones: 2\nbuffer-bytes: 32MiB\nshutdown-timeout: 3s\n")
	t.Setenv("CAIRN_LISTEN", "127.0.0.1:2222")
	t.Setenv("CAIRN_ZONES", "3")
	t.Setenv("CAIRN_CONFIG", f)
	c, err := load(t, "--zones", "4")
	if err != nil {
		t.Fatal(err)
	}
	if c.Zones != 4 || c.Listen != "127.0.0.1:2222" || c.Region != "from-file" || c.BufferBytes != 32<<20 ||
		c.ShutdownBound != 3*time.Second || c.AdminListen != Default().AdminListen || c.File.Path() != f {
		t.Fatalf("flag > variable > file > default does not hold: %+v", c)
	}
}

func TestFileLists(t *testing.T) {
	f := file(t, `
# two ways to write a drive
drives:
  - {path: "/mnt/a,b", zone: a, label: ssd}
  - path=/mnt/c,zone=b
domains: [s3.example.com, s3.test]
root-access-key: ROOTKEY
root-secret-key: 12345678
accounts:
  - name: ann
    access_key: ANNKEY
    secret_key: annsecret
`)
	c, err := load(t, "--config", f)
	if err != nil {
		t.Fatal(err)
	}
	want := []DriveSpec{{"/mnt/a,b", "a", "ssd"}, {"/mnt/c", "b", ""}}
	if got, _ := c.DriveList(); !reflect.DeepEqual(got, want) {
		t.Errorf("drives %v, want %v", got, want)
	}
	if strings.Join(c.Domains, " ") != "s3.example.com s3.test" {
		t.Errorf("domains %v", c.Domains)
	}
	if len(c.Accounts) != 1 || c.Accounts[0].ID != AccountID("ann") || c.Accounts[0].SecretKey != "annsecret" {
		t.Errorf("accounts %+v", c.Accounts)
	}
	if c.RootAccessKey != "ROOTKEY" || c.RootSecretKey != "12345678" {
		t.Errorf("root keys %q %q", c.RootAccessKey, c.RootSecretKey)
	}
	c, err = load(t, "--config", f, "--drive", "path=/x,zone=z", "--drive", "path=/y,zone=z,label=cold")
	if err != nil || len(c.Drives) != 2 || c.Drives[1] != (DriveSpec{"/y", "z", "cold"}) {
		t.Errorf("flags do not win over the file's drives: %v %v", c.Drives, err)
	}
	t.Setenv("CAIRN_ROOT_ACCESS_KEY", "ENVKEY")
	t.Setenv("CAIRN_ROOT_SECRET_KEY", "envsecret")
	t.Setenv("CAIRN_DRIVES", "path=/e,zone=a;path=/f,zone=b")
	c, err = load(t, "--config", f)
	if err != nil || c.RootAccessKey != "ENVKEY" || c.RootSecretKey != "envsecret" || len(c.Drives) != 2 || c.Drives[1].Path != "/f" {
		t.Errorf("variables do not win over the file: %+v %v", c, err)
	}
}

func TestFileErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"listen: 127.0.0.1:1\nlisten_on: x\n", ":2: listen_on is not a key"},
		{"data_dir: x\n", "did you mean data-dir?"},
		{"domain: x\n", "did you mean domains?"},
		{"config: x\n", "config is not a key"},
		{"zones: [1]\n", "want one value"},
		{"zones: many\n", "zones"},
		{"drives: x\n", "want a list"},
		{"drives: [{path: /a, zoen: b}]\n", "zoen"},
		{"accounts: [{name: a, key: b}]\n", "key"},
		{"- a\n- b\n", "want lines of the form"},
		{"zones: 1\nzones: 2\n", "zones"},
		{"a: [\n", "cairn.yaml"},
	} {
		_, err := load(t, "--config", file(t, test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, want one with %q", test.text, err, test.want)
		}
	}
	if _, err := load(t, "--config", "/does/not/exist.yaml"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := load(t, "--config", file(t, "")); err != nil {
		t.Errorf("empty file: %v", err)
	}
}

func TestDriveListOfZones(t *testing.T) {
	c, err := load(t, "--data-dir", "/srv/x", "--zones", "3", "--drives-per-zone", "2")
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.DriveList()
	if err != nil || len(list) != 6 || list[0] != (DriveSpec{Path: "/srv/x/zone-a/drive-1", Zone: "a"}) || list[5] != (DriveSpec{Path: "/srv/x/zone-c/drive-2", Zone: "c"}) {
		t.Fatalf("%v %v", list, err)
	}
}

func TestValidate(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"listen":         {func(c *Config) { c.Listen = "9000" }, "HOST:PORT"},
		"port":           {func(c *Config) { c.Listen = "localhost:99999" }, "0 to 65535"},
		"same address":   {func(c *Config) { c.AdminListen = c.Listen }, "different ports"},
		"zones":          {func(c *Config) { c.Zones = 0 }, "zones is 0"},
		"too many zones": {func(c *Config) { c.Zones = 27 }, "zones is 27"},
		"both ways":      {func(c *Config) { c.Zones, c.Drives = 3, []DriveSpec{{Path: "/a"}} }, "one of the two"},
		"twice":          {func(c *Config) { c.Drives = []DriveSpec{{Path: "/a"}, {Path: "/a/"}} }, "listed twice"},
		"nested":         {func(c *Config) { c.Drives = []DriveSpec{{Path: "/a/b"}, {Path: "/a"}} }, "inside the other"},
		"zone name":      {func(c *Config) { c.Drives = []DriveSpec{{Path: "/a", Zone: "A B"}} }, "zone \"A B\""},
		"label":          {func(c *Config) { c.Drives = []DriveSpec{{Path: "/a", Label: "nvme"}} }, "ssd, hdd or cold"},
		"region":         {func(c *Config) { c.Region = "US" }, "region"},
		"domain":         {func(c *Config) { c.Domains = []string{"S3:9000"} }, "host name without port"},
		"tls":            {func(c *Config) { c.TLSCert = "x" }, "go together"},
		"root half":      {func(c *Config) { c.RootAccessKey = "abc" }, "go together"},
		"root secret":    {func(c *Config) { c.RootAccessKey, c.RootSecretKey = "abc", "short" }, "secret key must be"},
		"access key":     {func(c *Config) { c.RootAccessKey, c.RootSecretKey = "a/b c", "longenough" }, "access key"},
		"account root":   {func(c *Config) { c.Accounts = []Account{{Name: "root", AccessKey: "abc", SecretKey: "12345678"}} }, "already that of root"},
		"account twice": {func(c *Config) {
			c.Accounts = []Account{{Name: "a", ID: "1", AccessKey: "abc", SecretKey: "12345678"}, {Name: "b", ID: "2", AccessKey: "abc", SecretKey: "12345678"}}
		}, "access key abc is already"},
		"voters":  {func(c *Config) { c.MetaVoters = 4 }, "meta-voters is 4"},
		"restore": {func(c *Config) { c.RestoreTimeMax = 49 * time.Hour }, "restore-time-max is 49h0m0s"},
		"events":  {func(c *Config) { c.EventsRetention = 0 }, "events-retention is 0s"},
		"kept":    {func(c *Config) { c.EventsRetainBytes = 0 }, "events-retain-bytes is 0"},
		"day":     {func(c *Config) { c.LifecycleDay = time.Millisecond }, "lifecycle-day is 1ms"},
		"buffer":  {func(c *Config) { c.BufferBytes = 1 }, "16MiB"},
		"level":   {func(c *Config) { c.LogLevel = "loud" }, "log-level"},
		"format":  {func(c *Config) { c.LogFormat = "xml" }, "log-format"},
	} {
		c := Default()
		test.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
	c := Default()
	c.Listen, c.Region, c.LogLevel = "x", "", "loud"
	if err := c.Validate(); strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not every error is reported: %v", err)
	}
}

func TestHelpTeaches(t *testing.T) {
	var cli struct {
		Config Config `embed:""`
	}
	var out bytes.Buffer
	p, err := kong.New(&cli, append(Options(), kong.Writers(&out, &out), kong.Exit(func(int) { panic("exit") }))...)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { recover() }()
		p.Parse([]string{"--help"})
	}()
	for _, want := range []string{"Drives and zones:", "--drive", "CAIRN_ZONES", "127.0.0.1:9000", "Safety:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]Size{"0": 0, "17": 17, "1KiB": 1024, "64mib": 64 << 20, "1.5 GiB": 3 << 29, "2GB": 2e9, "7B": 7} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want {
			t.Errorf("%q: %d %v, want %d", in, s, err, want)
		}
		var back Size
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Errorf("%q: written as %q, read back as %d", in, s, back)
		}
	}
	for _, in := range []string{"", "x", "MiB", "1e30TiB", "NaN", "1 2"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q: read as %d", in, s)
		}
	}
}

func TestReserveFor(t *testing.T) {
	c := Default()
	if got := c.ReserveFor(10 << 30); got != (10<<30)/20 {
		t.Errorf("small disk: %d", got)
	}
	if got := c.ReserveFor(1 << 40); got != 1<<30 {
		t.Errorf("large disk: %d", got)
	}
	c.Reserve = 5
	if got := c.ReserveFor(1 << 40); got != 5 {
		t.Errorf("set: %d", got)
	}
}

func TestOperationsNameEverySetting(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for field := range reflect.TypeFor[Config]().Fields() {
		if name := field.Tag.Get("name"); name != "" && !strings.Contains(string(text), "--"+name+"`") {
			t.Errorf("docs/operations.md does not name --%s", name)
		}
		if env := field.Tag.Get("env"); env != "" && env != "CAIRN_CONFIG" && !strings.Contains(string(text), "`"+env+"`") {
			t.Errorf("docs/operations.md does not name %s", env)
		}
		if def, err := defaultOf(field.Name); err == nil && field.Tag.Get("name") != "" && def != "" && !strings.Contains(string(text), "`"+def+"`") {
			t.Errorf("docs/operations.md does not name the default %s of --%s", def, field.Tag.Get("name"))
		}
	}
}

func defaultOf(field string) (string, error) {
	v := reflect.ValueOf(Default()).FieldByName(field)
	switch x := v.Interface().(type) {
	case string:
		return x, nil
	case int, Size, time.Duration:
		return fmt.Sprint(x), nil
	}
	return "", errors.New("no plain default")
}

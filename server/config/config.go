// Package config is everything an operator can set, with defaults and checks.
//
// The fields of Config carry the tags of the command-line library (kong): the
// name of a flag is also the key in the configuration file, and, in upper case
// with underscores and the prefix CAIRN_, the variable. A value is taken from
// the flag, else the variable, else the file, else the default. Options gives
// the parser what the tags refer to; Complete ends the reading and checks.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of the configuration itself.
const (
	ZonesMax        = 26  // zones simulated below the data folder: named a to z
	DrivesMax       = 256 // drives of one process
	AccountsMax     = 1000
	BucketGaugesMax = 100_000
	SecretMin       = 8 // characters of a secret key
	LifecycleDayMin = time.Second
	RestoreTimeMin  = time.Millisecond
	RestoreTimeMax  = 48 * time.Hour
	EventsKeptMin   = time.Second
	EventsKeptMax   = 366 * 24 * time.Hour
	ReserveAuto     = 1 << 30
	reserveShare    = 20 // automatic reserve: at most 1/20 of the file system
)

// Config is the configuration of one process. Read it after Complete and do not change it.
type Config struct {
	File FileFlag `name:"config" short:"c" env:"CAIRN_CONFIG" placeholder:"FILE" group:"start" help:"Configuration file (YAML). Its keys are the names of these flags; unknown keys are an error."`

	DataDir string `name:"data-dir" short:"d" env:"CAIRN_DATA_DIR" default:"${data_dir}" placeholder:"DIR" group:"start" help:"Folder for credentials.json and, unless --drive is given, the drives. Made if missing (default ${data_dir})."`
	Listen  string `name:"listen" short:"l" env:"CAIRN_LISTEN" default:"${listen}" placeholder:"HOST:PORT" group:"start" help:"Address of the S3 API (default ${listen}). Use :9000 to serve every interface."`

	AdminListen string `name:"admin-listen" env:"CAIRN_ADMIN_LISTEN" default:"${admin_listen}" placeholder:"HOST:PORT" group:"start" help:"Address of metrics, health and the admin API that 'cairn status' asks (default ${admin_listen}). Plain HTTP: keep it on a private network."`

	Zones         int         `name:"zones" env:"CAIRN_ZONES" default:"${zones}" placeholder:"N" group:"drives" help:"Zones to simulate below the data folder, zone-a, zone-b, ... (default ${zones})."`
	DrivesPerZone int         `name:"drives-per-zone" env:"CAIRN_DRIVES_PER_ZONE" default:"${drives_per_zone}" placeholder:"N" group:"drives" help:"Drive folders in each of them, drive-1, drive-2, ... (default ${drives_per_zone})."`
	Drives        []DriveSpec `name:"drive" env:"CAIRN_DRIVES" sep:";" placeholder:"path=DIR,zone=Z" group:"drives" help:"A drive: one folder on one file system, and the zone it stands in. Repeat it for each drive (in the variable separate them by ';'). Takes the place of --zones and --drives-per-zone. An optional label=ssd|hdd|cold says what it is."`

	// The cluster: see cluster.go. All of it empty is a store of one process.
	Node             string   `name:"node" env:"CAIRN_NODE" placeholder:"NAME" group:"cluster" help:"This node's name, unique in the cluster and kept for life. Without any flag of this section the store is one process."`
	Zone             string   `name:"zone" env:"CAIRN_ZONE" placeholder:"NAME" group:"cluster" help:"The zone that this node and its drives stand in."`
	ClusterInit      bool     `name:"cluster-init" env:"CAIRN_CLUSTER_INIT" group:"cluster" help:"Make a new cluster with this as its first node. Changes nothing once the node belongs to that cluster; refused where other state exists, and, with --join, where a node of a cluster answers."`
	Join             []string `name:"join" env:"CAIRN_JOIN" placeholder:"HOST:PORT,..." group:"cluster" help:"Cluster addresses of nodes to join, as many as are known; needed for the first start, a help afterwards."`
	JoinToken        string   `name:"join-token" env:"CAIRN_JOIN_TOKEN" placeholder:"TOKEN|@FILE" group:"cluster" help:"What 'cairn cluster token' printed on a member, or @ and a file with it. Needed for the first start only."`
	ClusterListen    string   `name:"cluster-listen" env:"CAIRN_CLUSTER_LISTEN" placeholder:"HOST:PORT" group:"cluster" help:"Address for the other nodes (:9002 in a cluster)."`
	ClusterAdvertise string   `name:"cluster-advertise" env:"CAIRN_CLUSTER_ADVERTISE" placeholder:"HOST:PORT" group:"cluster" help:"The same address as the other nodes reach it, if the host name and the port of --cluster-listen are not right."`
	ClusterPlaintext bool     `name:"cluster-plaintext" env:"CAIRN_CLUSTER_PLAINTEXT" group:"cluster" help:"No TLS between nodes, the same on every node. Whoever reaches the cluster address can then read and change everything."`
	SimulateNetwork  string   `name:"simulate-network" env:"CAIRN_SIMULATE_NETWORK" placeholder:"FILE" group:"cluster" help:"For tests: a file (JSON) of latency, loss, bandwidth and partitions between zones and nodes, looked at every second."`

	Region  string   `name:"region" env:"CAIRN_REGION" default:"${region}" placeholder:"NAME" group:"s3" help:"Region that clients must sign for (default ${region})."`
	Domains []string `name:"domain" env:"CAIRN_DOMAINS" placeholder:"NAME" group:"s3" help:"Domain under which buckets are host names: with s3.example.com also http://BUCKET.s3.example.com/KEY is served. Repeat it for more. Without any, only path style is."`
	TLSCert string   `name:"tls-cert" env:"CAIRN_TLS_CERT" placeholder:"FILE" group:"s3" help:"Certificate chain for S3 (PEM). Reloaded when the file changes."`
	TLSKey  string   `name:"tls-key" env:"CAIRN_TLS_KEY" placeholder:"FILE" group:"s3" help:"Its private key (PEM)."`

	LifecycleDay   time.Duration `name:"lifecycle-day" env:"CAIRN_LIFECYCLE_DAY" default:"${lifecycle_day}" placeholder:"DURATION" group:"s3" help:"How long a day is to lifecycle rules (default ${lifecycle_day}): for tests, and for small sites that want to see what rules do. The same on every node."`
	RestoreTimeMax time.Duration `name:"restore-time-max" env:"CAIRN_RESTORE_TIME_MAX" default:"${restore_time_max}" placeholder:"DURATION" group:"s3" help:"The longest that restoring an archived object takes (default ${restore_time_max}, S3's slowest); what S3 does sooner is not slowed. The same on every node."`

	EventsRetention   time.Duration `name:"events-retention" env:"CAIRN_EVENTS_RETENTION" default:"${events_retention}" placeholder:"DURATION" group:"s3" help:"How long events are kept after their delivery, for 'cairn events tail' and 'replay' (default ${events_retention})."`
	EventsRetainBytes Size          `name:"events-retain-bytes" env:"CAIRN_EVENTS_RETAIN_BYTES" default:"${events_retain_bytes}" placeholder:"SIZE" group:"s3" help:"How much of them one range of the metadata keeps at most (default ${events_retain_bytes}); those that are not delivered come on top."`

	MetaVoters    int           `name:"meta-voters" env:"CAIRN_META_VOTERS" default:"${meta_voters}" placeholder:"N" group:"safety" help:"Copies of the metadata that vote: 1, 3 or 5, each on a drive of its own; 0 takes the most that the drives can carry (default ${meta_voters})."`
	Reserve       Size          `name:"reserve" env:"CAIRN_RESERVE" default:"${reserve}" placeholder:"SIZE" group:"safety" help:"Space kept free on every drive, so that deletes, metadata and restarts work when it is full; 0 takes 1 GiB or a 20th of the file system, whichever is less."`
	MaxRequests   int           `name:"max-requests" env:"CAIRN_MAX_REQUESTS" default:"${max_requests}" placeholder:"N" group:"limits" help:"S3 requests served at once; more wait a moment, then get 503 SlowDown (default ${max_requests})."`
	BucketGauges  int           `name:"metrics-buckets" env:"CAIRN_METRICS_BUCKETS" default:"${metrics_buckets}" placeholder:"N" group:"limits" help:"Up to so many buckets have metrics of their own (default ${metrics_buckets}); if there are more, only storage classes have. 0 for never."`
	BufferBytes   Size          `name:"buffer-bytes" env:"CAIRN_BUFFER_BYTES" default:"${buffer_bytes}" placeholder:"SIZE" group:"limits" help:"Memory for the bytes of objects on their way in and out, of all requests together (default ${buffer_bytes})."`
	CacheBytes    Size          `name:"cache-bytes" env:"CAIRN_CACHE_BYTES" default:"${cache_bytes}" placeholder:"SIZE" group:"limits" help:"Memory for metadata and indexes read from the drives (default ${cache_bytes})."`
	MemoryLimit   Size          `name:"memory-limit" env:"CAIRN_MEMORY_LIMIT" default:"${memory_limit}" placeholder:"SIZE" group:"limits" help:"Memory that the process tries not to exceed (the Go runtime's soft limit); 0 sets none."`
	ShutdownBound time.Duration `name:"shutdown-timeout" env:"CAIRN_SHUTDOWN_TIMEOUT" default:"${shutdown_timeout}" placeholder:"DURATION" group:"limits" help:"How long a stop waits for requests under way before it cuts them off (default ${shutdown_timeout})."`

	LogLevel  string `name:"log-level" env:"CAIRN_LOG_LEVEL" default:"${log_level}" placeholder:"LEVEL" group:"log" help:"debug, info, warn or error (default ${log_level})."`
	LogFormat string `name:"log-format" env:"CAIRN_LOG_FORMAT" default:"${log_format}" placeholder:"FORMAT" group:"log" help:"text or json (default ${log_format})."`

	// The following have no flag: the list of processes shows flags to everyone.

	// RootAccessKey and RootSecretKey come from CAIRN_ROOT_ACCESS_KEY and
	// CAIRN_ROOT_SECRET_KEY or the file. Both empty: see Root.
	RootAccessKey string `kong:"-" key:"root-access-key"`
	RootSecretKey string `kong:"-" key:"root-secret-key"`
	// Accounts beside root, from the file only.
	Accounts []Account `kong:"-" key:"accounts"`
}

// Account is an S3 user with keys of its own: it owns the buckets it makes and sees no other's.
type Account struct {
	Name      string `yaml:"name"`       // shown to people; unique; not "root"
	ID        string `yaml:"id"`         // canonical user id; from the name if empty
	AccessKey string `yaml:"access_key"` // unique
	SecretKey string `yaml:"secret_key"`
}

// DriveSpec is one drive as configured.
type DriveSpec struct {
	Path  string `yaml:"path"` // absolute after Complete
	Zone  string `yaml:"zone"` // the node's if empty, else "a"
	Label string `yaml:"label"`
}

// UnmarshalText reads path=DIR,zone=Z[,label=L].
func (d *DriveSpec) UnmarshalText(text []byte) error {
	const want = "want path=DIR,zone=ZONE, as in --drive path=/mnt/disk1,zone=a"
	*d = DriveSpec{}
	for _, field := range strings.Split(string(text), ",") {
		name, value, ok := strings.Cut(field, "=")
		if !ok || value == "" {
			return fmt.Errorf("drive %q: %s", text, want)
		}
		switch strings.TrimSpace(name) {
		case "path":
			d.Path = value
		case "zone":
			d.Zone = value
		case "label":
			d.Label = value
		default:
			return fmt.Errorf("drive %q: unknown word %q: %s", text, name, want)
		}
	}
	if d.Path == "" {
		return fmt.Errorf("drive %q has no path: %s", text, want)
	}
	return nil
}

// String writes what UnmarshalText reads.
func (d DriveSpec) String() string {
	s := "path=" + d.Path + ",zone=" + d.Zone
	if d.Label != "" {
		s += ",label=" + d.Label
	}
	return s
}

// Default is the configuration without any flag, variable or file.
func Default() Config {
	return Config{
		DataDir: "./data", Listen: "127.0.0.1:9000", AdminListen: "127.0.0.1:9001",
		Zones: 1, DrivesPerZone: 1, Region: "us-east-1",
		MaxRequests: 512, BucketGauges: 1000, BufferBytes: 96 << 20, CacheBytes: 32 << 20,
		ShutdownBound: 15 * time.Second, LifecycleDay: 24 * time.Hour, RestoreTimeMax: RestoreTimeMax,
		EventsRetention: 24 * time.Hour, EventsRetainBytes: 1 << 30, LogLevel: "info", LogFormat: "text",
	}
}

// DriveList is the drives to serve, with absolute paths: the configured ones,
// else those of the simulated zones, DIR/zone-a/drive-1 and so on; on a node of a
// cluster, which stands in one zone, DIR/zone-NAME/drive-1 and so on.
func (c *Config) DriveList() ([]DriveSpec, error) {
	list := slices.Clone(c.Drives)
	if len(list) == 0 {
		for z := range c.Zones {
			zone := string(rune('a' + z))
			if c.Zone != "" {
				zone = c.Zone
			}
			for d := range c.DrivesPerZone {
				path := filepath.Join(c.DataDir, "zone-"+zone, "drive-"+strconv.Itoa(d+1))
				list = append(list, DriveSpec{Path: path, Zone: zone})
			}
		}
	}
	for i := range list {
		path, err := filepath.Abs(list[i].Path)
		if err != nil {
			return nil, fmt.Errorf("drive %s: %w", list[i].Path, err)
		}
		list[i].Path = path
		if list[i].Zone == "" {
			list[i].Zone = cmp.Or(c.Zone, "a")
		}
	}
	return list, nil
}

// ReserveFor is the space in bytes to keep free on a file system of total bytes.
func (c *Config) ReserveFor(total int64) int64 {
	if c.Reserve > 0 {
		return int64(c.Reserve)
	}
	return min(ReserveAuto, total/reserveShare)
}

// Complete takes in what only the file or the environment can say (root keys,
// accounts, drives as a list) and checks the whole. Call it once, after the flags were parsed.
func (c *Config) Complete() error {
	c.File.fill(c)
	c.rootFromEnv()
	if c.InCluster() && c.ClusterListen == "" {
		c.ClusterListen = ClusterListenDefault
	}
	for i := range c.Accounts {
		if a := &c.Accounts[i]; a.ID == "" && a.Name != "" {
			a.ID = AccountID(a.Name)
		}
	}
	return c.Validate()
}

func (c *Config) rootFromEnv() {
	if v, ok := os.LookupEnv("CAIRN_ROOT_ACCESS_KEY"); ok {
		c.RootAccessKey = v
	}
	if v, ok := os.LookupEnv("CAIRN_ROOT_SECRET_KEY"); ok {
		c.RootSecretKey = v
	}
}

// Validate finds everything that is wrong with the configuration; each error says what to do.
func (c *Config) Validate() error {
	var all []error
	bad := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }

	if c.DataDir == "" {
		bad("data-dir is empty: name a folder, as in --data-dir ./data")
	}
	checkAddress("listen", c.Listen, bad)
	checkAddress("admin-listen", c.AdminListen, bad)
	if c.Listen == c.AdminListen && !strings.HasSuffix(c.Listen, ":0") {
		bad("listen and admin-listen are both %s: give them different ports", c.Listen)
	}
	c.checkCluster(bad)
	c.checkDrives(bad)
	c.checkS3(bad)
	c.checkKeys(bad)
	if !slices.Contains([]int{0, 1, 3, 5}, c.MetaVoters) {
		bad("meta-voters is %d: use 1, 3 or 5, or 0 for the most that the drives can carry", c.MetaVoters)
	}
	if c.LifecycleDay < LifecycleDayMin || c.LifecycleDay > 24*time.Hour {
		bad("lifecycle-day is %s: use a duration from %s to 24h", c.LifecycleDay, LifecycleDayMin)
	}
	if c.RestoreTimeMax < RestoreTimeMin || c.RestoreTimeMax > RestoreTimeMax {
		bad("restore-time-max is %s: use a duration from %s to %s", c.RestoreTimeMax, RestoreTimeMin, RestoreTimeMax)
	}
	if c.EventsRetention < EventsKeptMin || c.EventsRetention > EventsKeptMax {
		bad("events-retention is %s: use a duration from %s to %s", c.EventsRetention, EventsKeptMin, EventsKeptMax)
	}
	if c.EventsRetainBytes < 1 {
		bad("events-retain-bytes is %s: use a size like 1GiB", c.EventsRetainBytes)
	}
	if c.Reserve < 0 {
		bad("reserve is negative: use a size like 2GiB, or 0 for the automatic one")
	}
	if c.MaxRequests < 1 {
		bad("max-requests is %d: at least 1 is needed", c.MaxRequests)
	}
	if c.BucketGauges < 0 || c.BucketGauges > BucketGaugesMax {
		bad("metrics-buckets is %d: use a number up to %d", c.BucketGauges, BucketGaugesMax)
	}
	if c.BufferBytes < 16<<20 {
		bad("buffer-bytes is %s: at least 16MiB is needed", c.BufferBytes)
	}
	if c.CacheBytes < 1<<20 {
		bad("cache-bytes is %s: at least 1MiB is needed", c.CacheBytes)
	}
	if c.MemoryLimit != 0 && c.MemoryLimit < 128<<20 {
		bad("memory-limit is %s: use at least 128MiB, or 0 for none", c.MemoryLimit)
	}
	if c.ShutdownBound <= 0 {
		bad("shutdown-timeout is %s: use a duration like 15s", c.ShutdownBound)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log-level is %q: use debug, info, warn or error", c.LogLevel)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		bad("log-format is %q: use text or json", c.LogFormat)
	}
	return errors.Join(all...)
}

func checkAddress(name, addr string, bad func(string, ...any)) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		bad("%s is %q: want HOST:PORT, as in 127.0.0.1:9000 or :9000", name, addr)
		return
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		bad("%s is %q: the port must be a number from 0 to 65535", name, addr)
	}
}

// zoneName also becomes a label of metrics and part of messages.
const zonePattern = `^[a-z0-9][a-z0-9._-]{0,62}$`

func (c *Config) checkDrives(bad func(string, ...any)) {
	if c.Zones < 1 || c.Zones > ZonesMax {
		bad("zones is %d: use 1 to %d", c.Zones, ZonesMax)
		return
	}
	if c.DrivesPerZone < 1 || c.Zones*c.DrivesPerZone > DrivesMax || len(c.Drives) > DrivesMax {
		bad("drives-per-zone is %d, zones %d, drives listed %d: use 1 to %d drives in all", c.DrivesPerZone, c.Zones, len(c.Drives), DrivesMax)
		return
	}
	if len(c.Drives) > 0 && (c.Zones > 1 || c.DrivesPerZone > 1) {
		bad("drives are listed and zones or drives-per-zone is set: use one of the two ways")
	}
	list, err := c.DriveList()
	if err != nil {
		bad("%w", err)
		return
	}
	zone := regexp.MustCompile(zonePattern)
	for i, d := range list {
		if c.Drives != nil && c.Drives[i].Path == "" {
			bad("drive %d has no path", i+1)
			continue
		}
		if !zone.MatchString(d.Zone) {
			bad("drive %s: zone %q: use lower-case letters, digits, dot, dash and underscore, 63 at most", d.Path, d.Zone)
		}
		if !slices.Contains([]string{"", "ssd", "hdd", "cold"}, d.Label) {
			bad("drive %s: label %q: use ssd, hdd or cold", d.Path, d.Label)
		}
		for _, e := range list[:i] {
			if d.Path == e.Path {
				bad("drive %s is listed twice", d.Path)
			} else if within(d.Path, e.Path) || within(e.Path, d.Path) {
				bad("drives %s and %s: one lies inside the other; give each a folder of its own", e.Path, d.Path)
			}
		}
	}
}

func within(inner, outer string) bool {
	return strings.HasPrefix(inner, strings.TrimSuffix(outer, "/")+"/")
}

const (
	regionPattern = `^[a-z0-9][a-z0-9-]{0,62}$`
	domainPattern = `^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`
)

func (c *Config) checkS3(bad func(string, ...any)) {
	if !regexp.MustCompile(regionPattern).MatchString(c.Region) {
		bad("region is %q: use lower-case letters, digits and dashes", c.Region)
	}
	domain := regexp.MustCompile(domainPattern)
	for _, d := range c.Domains {
		if !domain.MatchString(d) || len(d) > 253 {
			bad("domain %q: want a lower-case host name without port, as in s3.example.com", d)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls-cert and tls-key go together: one of them is not set")
	}
}

const accessKeyPattern = `^[A-Za-z0-9][A-Za-z0-9._@-]{2,127}$`

func (c *Config) checkKeys(bad func(string, ...any)) {
	access := regexp.MustCompile(accessKeyPattern)
	check := func(who, key, secret string) {
		if !access.MatchString(key) {
			bad("%s: access key %q: use 3 to 128 letters, digits and . _ @ -", who, key)
		}
		if len(secret) < SecretMin || len(secret) > 128 || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
			bad("%s: the secret key must be %d to 128 printable characters without spaces", who, SecretMin)
		}
	}
	if (c.RootAccessKey == "") != (c.RootSecretKey == "") {
		bad("CAIRN_ROOT_ACCESS_KEY and CAIRN_ROOT_SECRET_KEY (root-access-key and root-secret-key in the file) go together: one of them is not set")
	} else if c.RootAccessKey != "" {
		check("root", c.RootAccessKey, c.RootSecretKey)
	}
	if len(c.Accounts) > AccountsMax {
		bad("%d accounts: %d at most", len(c.Accounts), AccountsMax)
		return
	}
	seen := map[string]string{"name root": "root", "id " + AccountID(RootName): "root"}
	if c.RootAccessKey != "" {
		seen["access key "+c.RootAccessKey] = "root"
	}
	for i, a := range c.Accounts {
		who := fmt.Sprintf("account %d (%s)", i+1, a.Name)
		if a.Name == "" {
			bad("account %d has no name", i+1)
			continue
		}
		check(who, a.AccessKey, a.SecretKey)
		for _, what := range []string{"name " + a.Name, "id " + a.ID, "access key " + a.AccessKey} {
			if other, ok := seen[what]; ok {
				bad("%s: the %s is already that of %s", who, what, other)
			}
			seen[what] = who
		}
	}
}

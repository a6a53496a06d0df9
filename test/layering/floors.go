// Package layering keeps the shape of the code: which package may import which,
// and a few rules that a compiler does not know. All of it is in its tests; the
// table of floors is here, where a reader looks for it.
package layering

// floors is the order of cairn's packages: a package imports only packages of
// lower floors (tests may import anything). Packages of one floor do not know
// each other; where some do, the floor is divided by letters.
//
// A new package must be entered here.
func floors() map[string]string {
	return map[string]string{
		// 0: words.
		"proto/metapb": "0a",
		"proto/nodepb": "0b",
		"storage/errs": "0a",
		"storage":      "0b",
		"cluster":      "0c",
		// 1: pure functions and small data structures.
		"storage/checksum":   "1a",
		"storage/erasure":    "1b",
		"storage/pins":       "1b",
		"cluster/pki":        "1b",
		"cluster/placement":  "1b",
		"s3api/sigv4":        "1b",
		"s3api/s3xml":        "1b",
		"s3api/s3err":        "1b",
		"s3api/lifecycle":    "1b",
		"s3api/notification": "1b",
		"server/status":      "1b",
		"server/target":      "1b",
		// 2: the local disk, and the state machines.
		"storage/vfsx":       "2a",
		"cluster/netsim":     "2a",
		"storage/extent":     "2b",
		"storage/drive":      "2c",
		"cluster/raftlog":    "2c",
		"cluster/rangestate": "2c",
		"cluster/sysstate":   "2c",
		// 3: consensus.
		"cluster/rpc":       "3a",
		"cluster/multiraft": "3b",
		"cluster/raftrpc":   "3c",
		// 4: the client side of the two planes.
		"cluster/metarpc":    "4a",
		"storage/shardrpc":   "4a",
		"storage/pinrpc":     "4a",
		"cluster/metaclient": "4b",
		"storage/chunkio":    "4a",
		"storage/compress":   "4b",
		// 5: what S3 means.
		"s3api/objects": "5",
		// 6: work in the background; no worker knows another, only the runner.
		"storage/worker":     "6a",
		"storage/garbage":    "6b",
		"storage/repair":     "6b",
		"storage/verify":     "6b",
		"storage/lifecycle":  "6b",
		"cluster/controller": "6b",
		"cluster/splitter":   "6b",
		"server/delivery":    "6b",
		// 7: faces.
		"s3api":            "7",
		"server/config":    "7",
		"server/metrics":   "7",
		"server/admin":     "7",
		"server/tlsreload": "7",
		// Destinations of events, which know none of the others.
		"server/target/dialtls":  "6a",
		"server/target/kafka":    "7",
		"server/target/nats":     "7",
		"server/target/redis":    "7",
		"server/target/webhook":  "7",
		"server/target/amqp":     "7",
		"server/target/aws":      "7",
		"server/target/mqtt":     "7",
		"server/target/postgres": "7",
		// 8: where all is put together.
		"server/targets": "8a", // destinations of events, by kind
		"server/core":    "8b",
		"server":         "8c",
		// 9: the binary.
		"cmd/cairn/cli": "9a",
		"cmd/cairn":     "9b",
	}
}

// libraries says which floors and packages may import a library, so that a
// choice of library stays in one place. A library without an entry is free.
func libraries() map[string][]string {
	return map[string][]string{
		"net/http":                           {"s3api", "s3api/sigv4", "s3api/s3err", "s3api/s3xml", "server", "server/admin", "server/metrics", "server/target/aws", "server/target/webhook", "cmd/cairn/cli"},
		"github.com/hashicorp/raft":          {"cluster/multiraft", "cluster/raftlog", "cluster/raftrpc"},
		"github.com/alecthomas/kong":         {"server/config", "cmd/cairn/cli"},
		"github.com/goccy/go-yaml":           {"server/config"},
		"github.com/prometheus":              {"server/metrics", "server"},
		"github.com/klauspost/reedsolomon":   {"storage/erasure"},
		"github.com/klauspost/compress":      {"storage/compress"},
		"github.com/aws/aws-sdk-go-v2":       {"server/target/aws"},
		"google.golang.org/grpc":             {"cluster/rpc", "cluster/raftrpc", "cluster/metarpc", "cluster/controller", "storage/shardrpc", "storage/pinrpc", "server/core"},
		"github.com/nats-io":                 {"server/target/nats"},
		"github.com/nats-io/nats-server":     {}, // for tests
		"github.com/twmb/franz-go":           {"server/target/kafka"},
		"github.com/twmb/franz-go/pkg/kfake": {}, // for tests
		"github.com/redis/go-redis":          {"server/target/redis"},
		"github.com/alicebob/miniredis":      {}, // for tests
		"github.com/eclipse/paho.golang":     {"server/target/mqtt"},
		"github.com/jackc/pgx":               {"server/target/postgres"},
		"github.com/rabbitmq/amqp091-go":     {"server/target/amqp"},
		"github.com/mochi-mqtt/server":       {},
		"testing":                            {},
		"log":                                {"cluster/multiraft"}, // hashicorp/raft asks for one
		"flag":                               {},
		"unsafe":                             {},
		"encoding/gob":                       {},
		"github.com/stretchr/testify":        {},
		"github.com/anishathalye/porcupine":  {},
		"pgregory.net/rapid":                 {},
	}
}

// pure lists packages that must not know time, chance or consensus (the state
// machines: they are replayed, and every replica must come to the same state)
// and must not start goroutines.
func pure() []string { return []string{"cluster/rangestate", "cluster/sysstate"} }

// functionLinesMax is how long a function may be outside tests and generated code.
const functionLinesMax = 90

// longFunctions may be longer, each for a reason.
func longFunctions() map[string]string {
	return map[string]string{
		"s3api.operations": "a table: one line for each operation of S3",
	}
}

// globals may be package-level state, each for a reason: "package.name".
func globals() map[string]string {
	return map[string]string{}
}

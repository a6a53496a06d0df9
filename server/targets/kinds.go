package targets

import (
	"slices"

	"cairn/server/target"
	"cairn/server/target/amqp"
	"cairn/server/target/aws"
	"cairn/server/target/kafka"
	"cairn/server/target/mqtt"
	"cairn/server/target/nats"
	"cairn/server/target/postgres"
	"cairn/server/target/redis"
	"cairn/server/target/webhook"
)

// adapter is a destination that was configured and not yet opened.
type adapter struct {
	validate func() error
	open     func() (target.Target, error)
}

// of makes an adapter of what its package offers.
func of[C any](c C, validate func(*C) error, open func(C) (target.Target, error)) *adapter {
	return &adapter{func() error { return validate(&c) }, func() (target.Target, error) { return open(c) }}
}

// byValue is for packages whose Validate takes the configuration by value.
func byValue[C any](validate func(C) error) func(*C) error {
	return func(c *C) error { return validate(*c) }
}

type kind struct {
	Kind
	adapter func(*values) *adapter // nil: nothing is ever sent
}

// kinds is the table of all kinds, by name.
func kinds() []kind {
	return []kind{
		{Kind{"amqp", "An exchange of an AMQP 0.9.1 broker, as RabbitMQ.", amqpSettings()}, amqpAdapter},
		{Kind{"kafka", "A topic of Kafka.", kafkaSettings()}, kafkaAdapter},
		{Kind{"lambda", "A function of AWS Lambda.", awsSettings("name or ARN of the function")}, awsAdapter(aws.Lambda)},
		{Kind{LogKind, "Nowhere: events are kept as long as all are, to be read or replayed.", nil}, nil},
		{Kind{"mqtt", "A topic of an MQTT 5 broker.", mqttSettings()}, mqttAdapter},
		{Kind{"nats", "A subject of NATS that a JetStream stream captures.", natsSettings()}, natsAdapter},
		{Kind{"postgres", "A table of a PostgreSQL database.", postgresSettings()}, postgresAdapter},
		{Kind{"redis", "A stream of Redis.", redisSettings()}, redisAdapter},
		{Kind{"sns", "A topic of AWS SNS, or of what speaks its API.", awsSettings("ARN of the topic")}, awsAdapter(aws.SNS)},
		{Kind{"sqs", "A queue of AWS SQS, or of what speaks its API.", awsSettings("URL of the queue")}, awsAdapter(aws.SQS)},
		{Kind{"webhook", "An HTTP server, by POST.", webhookSettings()}, webhookAdapter},
	}
}

func timeout(of string) Setting {
	return Setting{Name: "timeout", Help: "how long " + of + " may take, as 10s", Default: "10s"}
}

// certificates are the settings of TLS where TLS is chosen by a URL.
func certificates() []Setting {
	return []Setting{
		{Name: "ca-file", Help: "file on every node with the authorities to believe, PEM; without: the system's"},
		{Name: "ca-pem", Help: "the authorities by value, PEM"},
		{Name: "cert-file", Help: "file on every node with our certificate, PEM"},
		{Name: "key-file", Help: "file on every node with its key, PEM"},
		{Name: "cert-pem", Help: "our certificate by value, PEM"},
		{Name: "key-pem", Help: "its key by value, PEM", Secret: true},
		{Name: "server-name", Help: "name expected in the other's certificate; without: the host that is dialed"},
		{Name: "insecure", Help: "true: believe any certificate", Default: "false"},
	}
}

// withTLS appends the settings of TLS where it is chosen by a setting.
func withTLS(s ...Setting) []Setting {
	return slices.Concat(s, []Setting{{Name: "tls", Help: "true: speak TLS", Default: "false"}}, certificates())
}

func withCertificates(s ...Setting) []Setting { return append(s, certificates()...) }

func webhookSettings() []Setting {
	return withCertificates(
		Setting{Name: "url", Help: "http://HOST/PATH or https://HOST/PATH", Required: true},
		Setting{Name: "secret", Help: "key of the signature that requests carry; without: none is signed", Secret: true},
		Setting{Name: "authorization", Help: "value of the Authorization header, as Bearer TOKEN", Secret: true},
		Setting{Name: "batch", Help: "events in a request; with more than one the body is an array", Default: "1"},
		timeout("a request"),
	)
}

func webhookAdapter(v *values) *adapter {
	return of(webhook.Config{
		URL: v.text("url"), Secret: v.text("secret"), Authorization: v.text("authorization"), TLS: v.tls(), Batch: v.small("batch"), Timeout: v.duration("timeout"),
	}, (*webhook.Config).Validate, webhook.Open)
}

func natsSettings() []Setting {
	return withTLS(
		Setting{Name: "servers", Help: "HOST:PORT of the servers, with commas between", Required: true},
		Setting{Name: "subject", Help: "to publish to", Required: true},
		Setting{Name: "stream", Help: "that must capture the subject; without: whichever does"},
		Setting{Name: "user", Help: "together with the password"},
		Setting{Name: "password", Help: "of the user", Secret: true},
		Setting{Name: "token", Help: "instead of user and password", Secret: true},
		Setting{Name: "creds-file", Help: "file on every node with a JWT and an nkey, instead of user and password"},
		Setting{Name: "nkey-seed", Help: "seed of an nkey, instead of user and password", Secret: true},
		Setting{Name: "window", Help: "messages under way at once", Default: "256"},
		timeout("connecting, and each acknowledgement,"),
	)
}

func natsAdapter(v *values) *adapter {
	return of(nats.Config{
		Servers: v.list("servers"), Subject: v.text("subject"), Stream: v.text("stream"), User: v.text("user"), Password: v.text("password"),
		Token: v.text("token"), CredsFile: v.text("creds-file"), NKeySeed: v.text("nkey-seed"), TLS: v.optionalTLS(), Window: v.small("window"), Timeout: v.duration("timeout"),
	}, (*nats.Config).Validate, nats.Open)
}

func kafkaSettings() []Setting {
	return withTLS(
		Setting{Name: "brokers", Help: "HOST:PORT of some of the brokers, with commas between", Required: true},
		Setting{Name: "topic", Help: "to produce to; it must be there", Required: true},
		Setting{Name: "sasl", Help: "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; without: nobody logs in"},
		Setting{Name: "user", Help: "with sasl"},
		Setting{Name: "password", Help: "with sasl", Secret: true},
		Setting{Name: "max-message-bytes", Help: "as the topic's max.message.bytes", Default: "1000012"},
		Setting{Name: "window", Help: "records under way at once", Default: "1000"},
		timeout("a batch"),
	)
}

func kafkaAdapter(v *values) *adapter {
	return of(kafka.Config{
		Brokers: v.list("brokers"), Topic: v.text("topic"), SASL: v.text("sasl"), User: v.text("user"), Password: v.text("password"),
		TLS: v.optionalTLS(), MaxMessageBytes: v.small("max-message-bytes"), Window: v.small("window"), Timeout: v.duration("timeout"),
	}, (*kafka.Config).Validate, kafka.Open)
}

func redisSettings() []Setting {
	return withTLS(
		Setting{Name: "address", Help: "HOST:PORT", Required: true},
		Setting{Name: "stream", Help: "key of the stream", Required: true},
		Setting{Name: "db", Help: "number of the database", Default: "0"},
		Setting{Name: "max-len", Help: "about how many entries the stream keeps; 0: all", Default: "0"},
		Setting{Name: "user", Help: "of an ACL; without: default"},
		Setting{Name: "password", Help: "of the user", Secret: true},
		Setting{Name: "window", Help: "messages in a transaction", Default: "100"},
		timeout("connecting, and each transaction,"),
	)
}

func redisAdapter(v *values) *adapter {
	return of(redis.Config{
		Address: v.text("address"), DB: v.small("db"), Stream: v.text("stream"), MaxLen: v.number("max-len"), User: v.text("user"), Password: v.text("password"),
		TLS: v.optionalTLS(), Window: v.small("window"), Timeout: v.duration("timeout"),
	}, (*redis.Config).Validate, redis.Open)
}

func amqpSettings() []Setting {
	return withTLS(
		Setting{Name: "address", Help: "HOST:PORT", Required: true},
		Setting{Name: "vhost", Help: "the virtual host", Default: "/"},
		Setting{Name: "user", Help: "together with the password; without both: guest"},
		Setting{Name: "password", Help: "of the user", Secret: true},
		Setting{Name: "exchange", Help: "to publish to; without: the default exchange, which hands to the queue that the routing key names"},
		Setting{Name: "routing-key", Help: "of all messages"},
		timeout("connecting, and a wave of messages,"),
	)
}

func amqpAdapter(v *values) *adapter {
	return of(amqp.Config{
		Address: v.text("address"), VHost: v.text("vhost"), User: v.text("user"), Password: v.text("password"), TLS: v.optionalTLS(),
		Exchange: v.text("exchange"), RoutingKey: v.text("routing-key"), Timeout: v.duration("timeout"),
	}, byValue(amqp.Config.Validate), amqp.Open)
}

func mqttSettings() []Setting {
	return withTLS(
		Setting{Name: "address", Help: "HOST:PORT", Required: true},
		Setting{Name: "topic", Help: "to publish to, without wildcards", Required: true},
		Setting{Name: "user", Help: "if the broker asks for one"},
		Setting{Name: "password", Help: "of the user", Secret: true},
		Setting{Name: "allow-no-subscribers", Help: "true: what the broker drops because nobody subscribes counts as delivered", Default: "false"},
		timeout("connecting, and each message,"),
	)
}

func mqttAdapter(v *values) *adapter {
	return of(mqtt.Config{
		Address: v.text("address"), User: v.text("user"), Password: v.text("password"), TLS: v.optionalTLS(), Topic: v.text("topic"),
		AllowNoSubscribers: v.truth("allow-no-subscribers"), Timeout: v.duration("timeout"),
	}, byValue(mqtt.Config.Validate), mqtt.Open)
}

func postgresSettings() []Setting {
	return withTLS(
		Setting{Name: "address", Help: "HOST:PORT", Required: true},
		Setting{Name: "database", Help: "its name", Required: true},
		Setting{Name: "user", Help: "who logs in", Required: true},
		Setting{Name: "password", Help: "of the user", Secret: true},
		Setting{Name: "schema", Help: "of the table; without: where the user's search_path leads"},
		Setting{Name: "table", Help: "that rows go into", Required: true},
		Setting{Name: "create-table", Help: "true: make the table if it is not there", Default: "false"},
		timeout("connecting, and a batch,"),
	)
}

func postgresAdapter(v *values) *adapter {
	return of(postgres.Config{
		Address: v.text("address"), Database: v.text("database"), User: v.text("user"), Password: v.text("password"), TLS: v.optionalTLS(),
		Schema: v.text("schema"), Table: v.text("table"), CreateTable: v.truth("create-table"), Timeout: v.duration("timeout"),
	}, byValue(postgres.Config.Validate), postgres.Open)
}

func awsSettings(resource string) []Setting {
	return withCertificates(
		Setting{Name: "region", Help: "as eu-central-1", Required: true},
		Setting{Name: "resource", Help: resource, Required: true},
		Setting{Name: "endpoint", Help: "http:// or https:// and a host; without: AWS's own of the region"},
		Setting{Name: "access-key-id", Help: "of who may send", Required: true},
		Setting{Name: "secret-access-key", Help: "of the access key", Secret: true, Required: true},
		Setting{Name: "session-token", Help: "of temporary credentials", Secret: true},
		timeout("a request"),
	)
}

func awsAdapter(s aws.Service) func(*values) *adapter {
	return func(v *values) *adapter {
		return of(aws.Config{
			Service: s, Region: v.text("region"), Endpoint: v.text("endpoint"), Resource: v.text("resource"), AccessKeyID: v.text("access-key-id"),
			SecretAccessKey: v.text("secret-access-key"), SessionToken: v.text("session-token"), TLS: v.tls(), Timeout: v.duration("timeout"),
		}, byValue(aws.Config.Validate), aws.Open)
	}
}

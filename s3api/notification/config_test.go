package notification

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"cairn/proto/metapb"
	"cairn/test/seed"
)

const (
	topic    = metapb.NotificationRule_KIND_TOPIC
	queue    = metapb.NotificationRule_KIND_QUEUE
	function = metapb.NotificationRule_KIND_FUNCTION

	topicARN    = "arn:aws:sns:us-east-1:123456789012:news"
	queueARN    = "arn:aws:sqs:us-east-1:123456789012:work"
	functionARN = "arn:aws:lambda:us-east-1:123456789012:function:thumbnail"
)

// counter answers new-1, new-2 and so on.
func counter() func() string {
	n := 0
	return func() string { n++; return fmt.Sprint("new-", n) }
}

func key(name, value string) *metapb.KV { return &metapb.KV{Name: name, Value: value} }

func TestConfig(t *testing.T) {
	asked := []Asked{
		{Kind: queue, ID: "a", ARN: queueARN, Events: []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:Delete"}, Filters: []*metapb.KV{key("suffix", ".jpg"), key("PREFIX", "in/")}},
		{Kind: topic, ARN: topicARN, Events: []string{"s3:ObjectCreated:Put"}, Filters: []*metapb.KV{key("Suffix", ".png")}},
		{Kind: function, ARN: functionARN, Events: []string{"s3:ObjectTagging:*"}},
	}
	got, err := Config(asked, true, counter())
	want := &metapb.NotificationConfig{EventBridge: true, Rules: []*metapb.NotificationRule{
		{Id: "a", Kind: queue, Arn: queueARN, Events: []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:Delete"}, Prefix: "in/", Suffix: ".jpg"},
		{Id: "new-1", Kind: topic, Arn: topicARN, Events: []string{"s3:ObjectCreated:Put"}, Suffix: ".png"},
		{Id: "new-2", Kind: function, Arn: functionARN, Events: []string{"s3:ObjectTagging:*"}},
	}}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	asked[0].Events[0] = "changed"
	if got.Rules[0].Events[0] != "s3:ObjectCreated:*" {
		t.Error("the configuration shares memory with what was asked")
	}
	if got, err := Config(nil, false, counter()); got != nil || err != nil {
		t.Error(got, err)
	}
	if got, err := Config(nil, true, counter()); err != nil || !got.EventBridge || len(got.Rules) != 0 {
		t.Error(got, err)
	}
}

// TestConfigRefuses changes one thing of a good rule.
func TestConfigRefuses(t *testing.T) {
	good := func() Asked {
		return Asked{Kind: queue, ID: "a", ARN: queueARN, Events: []string{"s3:ObjectCreated:*"}}
	}
	other := good()
	other.ID, other.Events = "b", []string{"s3:ObjectRemoved:*"}
	if _, err := Config([]Asked{good(), other}, false, counter()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, name, value string
		change            func(a *Asked)
	}{
		{"two ids that are one", "Id", "b", func(a *Asked) { a.ID = "b" }},
		{"a long id", "Id", strings.Repeat("é", 256), func(a *Asked) { a.ID = strings.Repeat("é", 256) }},
		{"no ARN", "ARN", "", func(a *Asked) { a.ARN = "" }},
		{"an ARN of another kind", "ARN", topicARN, func(a *Asked) { a.ARN = topicARN }},
		{"no kind", "ARN", queueARN, func(a *Asked) { a.Kind = 0 }},
		{"no event", "Event", "", func(a *Asked) { a.Events = nil }},
		{"an unknown event", "Event", "s3:ObjectRead:Get", func(a *Asked) { a.Events = append(a.Events, "s3:ObjectRead:Get") }},
		{"an event twice", "Event", "s3:ObjectCreated:*", func(a *Asked) { a.Events = append(a.Events, a.Events[0]) }},
		{"an event twice by the star", "Event", "s3:ObjectCreated:Put", func(a *Asked) { a.Events = append(a.Events, "s3:ObjectCreated:Put") }},
		{"an unknown filter", "FilterRule.Name", "infix", func(a *Asked) { a.Filters = []*metapb.KV{key("infix", "x")} }},
		{"two prefixes", "FilterRule.Name", "Prefix", func(a *Asked) { a.Filters = []*metapb.KV{key("prefix", "x"), key("Prefix", "x")} }},
		{"two suffixes", "FilterRule.Name", "suffix", func(a *Asked) { a.Filters = []*metapb.KV{key("suffix", "x"), key("suffix", "y")} }},
		{"an empty prefix", "FilterRule.Value", "", func(a *Asked) { a.Filters = []*metapb.KV{key("prefix", "")} }},
		{"a long suffix", "FilterRule.Value", strings.Repeat("x", 1025), func(a *Asked) { a.Filters = []*metapb.KV{key("suffix", strings.Repeat("x", 1025))} }},
		{"half a character", "FilterRule.Value", "100%", func(a *Asked) { a.Filters = []*metapb.KV{key("prefix", "a"), key("suffix", "100%")} }},
		{"an event of another rule", "Event", "s3:ObjectRemoved:Delete; s3:ObjectRemoved:*", func(a *Asked) { a.Events = []string{"s3:ObjectRemoved:Delete"} }},
	} {
		a := good()
		c.change(&a)
		got, err := Config([]Asked{a, other}, true, counter())
		var invalid *Invalid
		if !errors.As(err, &invalid) || got != nil || invalid.Name != c.name || invalid.Value != c.value || invalid.Message == "" {
			t.Errorf("%s: %v, %v", c.what, got, err)
		}
	}
	lost := good()
	lost.Events = append(lost.Events, "s3:ReducedRedundancyLostObject")
	var unsupported *Unsupported
	if got, err := Config([]Asked{lost}, false, counter()); !errors.As(err, &unsupported) || got != nil {
		t.Error(got, err)
	}
	longest := good()
	longest.ID, longest.Filters = strings.Repeat("é", 255), []*metapb.KV{key("prefix", strings.Repeat("x", 1024)), key("suffix", strings.Repeat("y", 1024))}
	if _, err := Config([]Asked{longest}, false, counter()); err != nil {
		t.Error(err)
	}
	if _, err := Config([]Asked{good(), good()}, false, func() string { return "a" }); err == nil {
		t.Error("two rules of one id")
	}
}

func TestConfigRulesMax(t *testing.T) {
	var asked []Asked
	for i := range RulesMax {
		asked = append(asked, Asked{Kind: queue, ARN: queueARN, Events: []string{"s3:ObjectCreated:*"}, Filters: []*metapb.KV{key("prefix", fmt.Sprintf("%03d/", i))}})
	}
	if got, err := Config(asked, false, counter()); err != nil || len(got.Rules) != RulesMax {
		t.Fatal(err)
	}
	asked = append(asked, Asked{Kind: queue, ARN: queueARN, Events: []string{"s3:ObjectRemoved:*"}})
	var invalid *Invalid
	if _, err := Config(asked, false, counter()); !errors.As(err, &invalid) || invalid.Value != "101" {
		t.Error(err)
	}
}

func TestOverlapExamples(t *testing.T) {
	for _, c := range []struct {
		a, b    string // event prefix suffix
		overlap bool
	}{
		{"ObjectCreated:* - -", "ObjectCreated:* - -", true},
		{"ObjectCreated:* - -", "ObjectRemoved:* - -", false},
		{"ObjectCreated:* images/ -", "ObjectCreated:Put - jpg", true},
		{"ObjectCreated:* images/ -", "ObjectCreated:Put logs/ -", false},
		{"ObjectCreated:* images -", "ObjectCreated:Copy images/ -", true},
		{"ObjectCreated:* images jpg", "ObjectCreated:Copy images png", false},
		{"ObjectCreated:* - jpg", "ObjectCreated:Copy - pg", true},
		{"ObjectCreated:Put images jpg", "ObjectCreated:Copy images jpg", false},
		{"ObjectCreated:Put a b", "ObjectCreated:Put ab b", true},
		{"ObjectCreated:Put y%3D1 -", "ObjectCreated:Put y=1/ -", true},
		{"ObjectCreated:Put a+ -", "ObjectCreated:Put a%20b -", true},
		{"ObjectCreated:Put %2525 -", "ObjectCreated:Put %25 -", true},
		{"ObjectCreated:Put a%3D -", "ObjectCreated:Put a%3E -", false},
	} {
		var asked []Asked
		for _, s := range []string{c.a, c.b} {
			f := strings.Fields(s)
			a := Asked{Kind: queue, ARN: queueARN, Events: []string{"s3:" + f[0]}}
			for i, name := range []string{"prefix", "suffix"} {
				if f[i+1] != "-" {
					a.Filters = append(a.Filters, key(name, f[i+1]))
				}
			}
			asked = append(asked, a)
		}
		for range 2 {
			_, err := Config(asked, false, counter())
			if (err != nil) != c.overlap || err != nil && !strings.Contains(err.Error(), "Configurations overlap") {
				t.Errorf("%s and %s: %v", c.a, c.b, err)
			}
			asked[0], asked[1] = asked[1], asked[0]
		}
	}
}

// allKeys are all strings over a and b of up to n letters.
func allKeys(n int) []string {
	keys := []string{""}
	for i := 0; len(keys[i]) < n; i++ {
		keys = append(keys, keys[i]+"a", keys[i]+"b")
	}
	return keys
}

// TestOverlapBruteForce refuses exactly the configurations of two rules that some key and event match both of.
func TestOverlapBruteForce(t *testing.T) {
	r := rand.New(rand.NewPCG(seed.Of(t), 1))
	parts, keys := allKeys(2), allKeys(4)
	names := []string{"s3:ObjectCreated:*", "s3:ObjectCreated:Put", "s3:ObjectCreated:Copy", "s3:ObjectRemoved:*", "s3:ObjectRemoved:Delete", "s3:IntelligentTiering"}
	taken, refused := 0, 0
	for range 3000 {
		cfg := &metapb.NotificationConfig{}
		var asked []Asked
		for range 2 {
			rule := &metapb.NotificationRule{Events: []string{names[r.IntN(len(names))]}, Prefix: parts[r.IntN(len(parts))], Suffix: parts[r.IntN(len(parts))]}
			a := Asked{Kind: topic, ARN: topicARN, Events: rule.Events}
			for name, value := range map[string]string{"prefix": rule.Prefix, "suffix": rule.Suffix} {
				if value != "" {
					a.Filters = append(a.Filters, key(name, value))
				}
			}
			cfg.Rules, asked = append(cfg.Rules, rule), append(asked, a)
		}
		both := ""
		rules := Compile(cfg)
		for _, k := range keys {
			for e := Type(0); e < typesEnd; e++ {
				n := 0
				rules.Match(e, k, func(int) { n++ })
				if n == 2 {
					both = fmt.Sprint(e, " ", k)
				}
			}
		}
		_, err := Config(asked, false, counter())
		if (err != nil) != (both != "") {
			t.Fatalf("%v: both match %q, %v", cfg.Rules, both, err)
		}
		if err == nil {
			taken++
		} else {
			refused++
		}
	}
	if taken < 200 || refused < 200 {
		t.Error(taken, refused)
	}
}

func TestParseARN(t *testing.T) {
	for s, want := range map[string]ARN{
		topicARN:                          {topic, "us-east-1", "123456789012", "news"},
		queueARN:                          {queue, "us-east-1", "123456789012", "work"},
		functionARN:                       {function, "us-east-1", "123456789012", "thumbnail"},
		functionARN + ":$LATEST":          {function, "us-east-1", "123456789012", "thumbnail:$LATEST"},
		"arn:aws:sqs:::work.fifo":         {queue, "", "", "work.fifo"},
		"arn:aws-cn:sns:cn-north-1:1:n_-": {topic, "cn-north-1", "1", "n_-"},
		"arn:aws:sns:r:a:" + strings.Repeat("n", 256): {topic, "r", "a", strings.Repeat("n", 256)},
	} {
		if got, ok := ParseARN(s); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", s, got, ok)
		}
		if name, version, _ := strings.Cut(want.Name, ":"); want.Target() != name || version != "" && want.Kind != function {
			t.Errorf("%s: the target is %q", s, want.Target())
		}
	}
	for _, s := range []string{"", "arn", "arn:aws:sns:us-east-1:123456789012", "arn:aws:sns:us-east-1:123456789012:", "arn:aws:sns:us-east-1:123456789012:a:b", "arn:aws:sns:us-east-1:123456789012:a/b", "ARN:aws:sns:::a",
		"arn:amazon:sns:::a", "arn:aws:s3:::bucket", "arn:aws:sns:us east:1:a", "arn:aws:sns:r:1*:a", "arn:aws:lambda:r:1:thumbnail", "arn:aws:lambda:r:1:function:", "arn:aws:lambda:r:1:function:a:", "arn:aws:lambda:r:1:function:a:b:c",
		"arn:aws:lambda:r:1:function::b", "arn:aws:sns:r:1:é", "arn:aws:sns:r:1:" + strings.Repeat("n", 257), "arn:aws:sns:" + strings.Repeat("r", 65) + ":1:n", "arn:aws:sns:r:" + strings.Repeat("1", 65) + ":n", " " + topicARN} {
		if got, ok := ParseARN(s); ok || got != (ARN{}) {
			t.Errorf("%s: %+v, %v", s, got, ok)
		}
	}
}

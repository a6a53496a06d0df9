package notification

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
)

// matched are the rules that match, by Match.
func matched(r *Rules, event Type, key string) (rules []int) {
	r.Match(event, key, func(rule int) { rules = append(rules, rule) })
	return rules
}

func TestMatch(t *testing.T) {
	r := Compile(&metapb.NotificationConfig{Rules: []*metapb.NotificationRule{
		{Events: []string{"s3:ObjectCreated:*"}, Prefix: "in/", Suffix: ".jpg"},
		{Events: []string{"s3:ObjectCreated:Put", "s3:ObjectRemoved:*"}},
		{Events: []string{"s3:ObjectCreated:Put", "s3:OfAnotherVersion"}, Suffix: "/.jpg"},
	}})
	for _, c := range []struct {
		event Type
		key   string
		want  []int
	}{
		{ObjectCreatedPut, "in/a.jpg", []int{0, 1}},
		{ObjectCreatedPut, "in/.jpg", []int{0, 1, 2}},
		{ObjectCreatedPut, "in/a.JPG", []int{1}},
		{ObjectCreatedCopy, "in/a.jpg", []int{0}},
		{ObjectCreatedCopy, "In/a.jpg", nil},
		{ObjectCreatedCopy, "in", nil},
		{ObjectRemovedDelete, "", []int{1}},
		{ObjectTaggingPut, "in/a.jpg", nil},
		{0, "in/a.jpg", nil},
		{typesEnd, "in/a.jpg", nil},
		{255, "in/a.jpg", nil},
	} {
		if got := matched(r, c.event, c.key); !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %v, want %v", c.event, c.key, got, c.want)
		}
	}
	if r.Empty() || r.EventBridge() {
		t.Error("it has rules and no EventBridge")
	}
	if b := Compile(&metapb.NotificationConfig{EventBridge: true}); b.Empty() || !b.EventBridge() || matched(b, ObjectCreatedPut, "a") != nil {
		t.Error("it has EventBridge and no rules")
	}
	for _, cfg := range []*metapb.NotificationConfig{nil, {}, {Rules: []*metapb.NotificationRule{nil, {Events: []string{"s3:OfAnotherVersion"}}, {Events: []string{"s3:ObjectCreated:Put"}, Suffix: "%"}}}} {
		if n := Compile(cfg); !n.Empty() || n.EventBridge() || matched(n, ObjectCreatedPut, "a") != nil {
			t.Error(cfg, "is not empty")
		}
	}
}

func TestMatchReadsFilters(t *testing.T) {
	for _, c := range []struct {
		prefix, suffix, key string
		want                bool
	}{
		{"year%3D2026/", "", "year=2026/a", true},
		{"year=2026/", "", "year=2026/a", true},
		{"year=2026/", "", "year%3D2026/a", false},
		{"year%253D", "", "year%3D2026/a", true},
		{"my+pictures%2f", "", "my pictures/a", true},
		{"my pictures", "", "my pictures/a", true},
		{"my+pictures", "", "my+pictures/a", false},
		{"my%2Bpictures", "", "my+pictures/a", true},
		{"", "%C3%A9", "caf\u00e9", true},
		{"", "%A9", "caf\u00e9", true},
		{"*", "", "a", false},
		{"*", "", "*a", true},
	} {
		r := Compile(&metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{Events: []string{"s3:ObjectCreated:*"}, Prefix: c.prefix, Suffix: c.suffix}}})
		if got := matched(r, ObjectCreatedPut, c.key) != nil; got != c.want {
			t.Errorf("%q %q of %q: %v", c.prefix, c.suffix, c.key, got)
		}
	}
}

func manyRules() *Rules {
	cfg := &metapb.NotificationConfig{}
	for i := range RulesMax {
		cfg.Rules = append(cfg.Rules, &metapb.NotificationRule{Events: []string{"s3:ObjectCreated:*"}, Prefix: fmt.Sprintf("in/%03d/", i), Suffix: ".jpg"})
	}
	return Compile(cfg)
}

func TestMatchAllocatesNothing(t *testing.T) {
	r := manyRules()
	last := -1
	if n := testing.AllocsPerRun(100, func() { r.Match(ObjectCreatedPut, "in/099/a.jpg", func(rule int) { last = rule }) }); n != 0 || last != 99 {
		t.Error(n, last)
	}
}

func BenchmarkMatch100(b *testing.B) {
	r := manyRules()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		r.Match(ObjectCreatedPut, "in/099/a.jpg", func(int) { n++ })
	}
}

// FuzzMatch compares Match with what a rule says, and lets Config and ParseARN see anything.
func FuzzMatch(f *testing.F) {
	f.Add("s3:ObjectCreated:*", "in/", ".jpg", "in/a.jpg", topicARN, "prefix", byte(1))
	f.Add("s3:ObjectRemoved:Delete", "", "", "", queueARN, "Suffix", byte(5))
	f.Add("s3:*", "aa", "aa", "aaa", functionARN, "", byte(0))
	f.Add("s3:Replication:*", "\xff", "é", "\xffé", "arn:aws:lambda:::function:a:b", "PREFIX", byte(255))
	f.Add("s3:ObjectTagging:Put", "a%3Db+", "%", "a=b %", topicARN, "prefix", byte(14))
	f.Fuzz(func(t *testing.T, event, prefix, suffix, k, arn, name string, number byte) {
		r := Compile(&metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{Events: []string{event, "s3:ObjectTagging:*"}, Prefix: prefix, Suffix: suffix}}})
		typ := Type(number)
		wanted := typ.String() != "" && (event == "s3:"+typ.String() || strings.HasSuffix(event, ":*") && strings.HasPrefix("s3:"+typ.String(), event[:len(event)-1])) && event != "s3:ObjectAcl:*" && event != "s3:*" ||
			typ == ObjectTaggingPut || typ == ObjectTaggingDelete
		begin, err1 := url.QueryUnescape(prefix)
		end, err2 := url.QueryUnescape(suffix)
		wanted = wanted && err1 == nil && err2 == nil && strings.HasPrefix(k, begin) && strings.HasSuffix(k, end)
		if got := matched(r, typ, k); (len(got) == 1) != wanted || len(got) > 1 {
			t.Errorf("%s, %q, %q, %s, %q: %v", event, prefix, suffix, typ, k, got)
		}
		parsed, ok := ParseARN(arn)
		cfg, err := Config([]Asked{{Kind: parsed.Kind, ID: k, ARN: arn, Events: []string{event}, Filters: []*metapb.KV{key(name, prefix)}}}, number%2 == 0, counter())
		if err == nil && (!ok || len(cfg.Rules) != 1 || cfg.Rules[0].Id == "" || cfg.Rules[0].Prefix != prefix && cfg.Rules[0].Suffix != prefix) {
			t.Errorf("%v from %s, %s %q", cfg, arn, name, prefix)
		}
	})
}

package s3xml

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
)

func notificationText(n Notification) (out string) {
	for _, r := range n.Rules {
		filters := ""
		for _, f := range r.Filters {
			filters += fmt.Sprintf("(%s %s)", f.Name, f.Value)
		}
		out += fmt.Sprintf("[%d %s %s %v %s]", r.Kind, r.ID, r.ARN, r.Events, filters)
	}
	return out + fmt.Sprint(n.EventBridge)
}

func notification(inner string) []byte {
	return []byte(`<?xml version="1.0" encoding="UTF-8"?><NotificationConfiguration xmlns="` + Namespace + `">` + inner + `</NotificationConfiguration>`)
}

// rule is a rule of a kind with something between an ARN and an event.
func rule(kind, inner string) string {
	return "<" + kind + "Configuration><" + kind + ">arn</" + kind + ">" + inner + "<Event>e</Event></" + kind + "Configuration>"
}

func filterOf(rules string) string {
	return "<Filter><S3Key>" + rules + "</S3Key></Filter>"
}

func TestParseNotification(t *testing.T) {
	for _, c := range []struct{ inner, want string }{
		{"", "false"},
		{"<EventBridgeConfiguration/>", "true"},
		{"<EventBridgeConfiguration>\n</EventBridgeConfiguration>", "true"},
		{rule("Topic", ""), "[1  arn [e] ]false"},
		{rule("Queue", "<Id> x </Id>"), "[2  x  arn [e] ]false"},
		{rule("CloudFunction", "<Event>\n d </Event><Id/>"), "[3  arn [d e] ]false"},
		{rule("Queue", "") + rule("Topic", "") + "<EventBridgeConfiguration/>" + rule("Queue", ""), "[2  arn [e] ][1  arn [e] ][2  arn [e] ]true"},
		{rule("Queue", "<Filter/>"), "[2  arn [e] ]false"},
		{rule("Queue", filterOf("")), "[2  arn [e] ]false"},
		{rule("Queue", filterOf("<FilterRule><Name> PREFIX</Name><Value> a </Value></FilterRule><FilterRule><Value/><Name>any</Name></FilterRule>")), "[2  arn [e] (PREFIX  a )(any )]false"},
		{"<QueueConfiguration><Event>s3:ObjectCreated:*</Event><Queue>\n arn:aws:sqs:::q </Queue></QueueConfiguration>", "[2  arn:aws:sqs:::q [s3:ObjectCreated:*] ]false"},
	} {
		got, err := ParseNotification(notification(c.inner))
		if err != nil || notificationText(got) != c.want {
			t.Errorf("%s: %s, %v, want %s", c.inner, notificationText(got), err, c.want)
		}
	}
	value := "<FilterRule><Name>prefix</Name><Value>a</Value></FilterRule>"
	for _, inner := range []string{
		"<Other/>", "text", "<LambdaFunctionConfiguration/>", "<EventBridgeConfiguration/><EventBridgeConfiguration/>", "<EventBridgeConfiguration><Other/></EventBridgeConfiguration>", "<TopicConfiguration/>",
		"<TopicConfiguration><Topic>arn</Topic></TopicConfiguration>", "<TopicConfiguration><Event>e</Event></TopicConfiguration>", "<TopicConfiguration><Queue>arn</Queue><Event>e</Event></TopicConfiguration>",
		rule("Topic", "<Topic>arn</Topic>"), rule("Topic", "<Queue>arn</Queue>"), rule("Topic", "<Other/>"), rule("Topic", "<Id>a</Id><Id>b</Id>"), rule("Topic", "<InvocationRole>a</InvocationRole>"), rule("Topic", "<Filter/><Filter/>"),
		rule("Topic", strings.Repeat("<Event>e</Event>", 64)), rule("Queue", "<Filter><Prefix>a</Prefix></Filter>"), rule("Queue", "<Filter><S3Key/><S3Key/></Filter>"), rule("Queue", filterOf("<Other/>")), rule("Queue", filterOf("<FilterRule/>")),
		rule("Queue", filterOf("<FilterRule><Name>prefix</Name></FilterRule>")), rule("Queue", filterOf("<FilterRule><Value>a</Value></FilterRule>")), rule("Queue", filterOf("<FilterRule><Name/><Value>a</Value></FilterRule>")),
		rule("Queue", filterOf("<FilterRule><Name>a</Name><Name>a</Name><Value>a</Value></FilterRule>")), rule("Queue", filterOf("<FilterRule><Name>a</Name><Value>a</Value><Other/></FilterRule>")), rule("Queue", filterOf(strings.Repeat(value, 17))),
		rule("Queue", "<Id><b/></Id>"),
	} {
		var syntax *SyntaxError
		if got, err := ParseNotification(notification(inner)); !errors.As(err, &syntax) || len(got.Rules) != 0 || got.EventBridge {
			t.Errorf("%.120s: %s, %v", inner, notificationText(got), err)
		}
	}
	if got, err := ParseNotification(notification(rule("Queue", filterOf(strings.Repeat(value, 16))+strings.Repeat("<Event>e</Event>", 63)))); err != nil || len(got.Rules[0].Filters) != 16 || len(got.Rules[0].Events) != 64 {
		t.Error(notificationText(got), err)
	}
	var unsupported *Unsupported
	if _, err := ParseNotification(notification(rule("CloudFunction", "<InvocationRole>a</InvocationRole>"))); !errors.As(err, &unsupported) || unsupported.Element != "InvocationRole" {
		t.Error(err)
	}
	if got, err := ParseNotification(notification(strings.Repeat(rule("Topic", ""), NotificationRulesMax))); err != nil || len(got.Rules) != NotificationRulesMax {
		t.Error(len(got.Rules), err)
	}
	var many *TooMany
	if _, err := ParseNotification(notification(strings.Repeat(rule("Topic", ""), NotificationRulesMax+1))); !errors.As(err, &many) || many.Max != NotificationRulesMax {
		t.Error(err)
	}
}

func TestWriteNotification(t *testing.T) {
	for _, c := range []struct {
		cfg  *metapb.NotificationConfig
		want string
	}{
		{nil, ""},
		{&metapb.NotificationConfig{EventBridge: true}, "<EventBridgeConfiguration></EventBridgeConfiguration>"},
		{&metapb.NotificationConfig{Rules: []*metapb.NotificationRule{
			{Id: "<1>", Kind: metapb.NotificationRule_KIND_TOPIC, Arn: "t", Events: []string{"a", "b"}, Suffix: "&"},
			{Id: "2", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "q", Events: []string{"a"}, Prefix: "p", Suffix: "s"},
			{Id: "3", Kind: metapb.NotificationRule_KIND_FUNCTION, Arn: "f", Events: []string{"a"}},
		}}, "<TopicConfiguration><Id>&lt;1&gt;</Id><Topic>t</Topic><Event>a</Event><Event>b</Event><Filter><S3Key><FilterRule><Name>Suffix</Name><Value>&amp;</Value></FilterRule></S3Key></Filter></TopicConfiguration>" +
			"<QueueConfiguration><Id>2</Id><Queue>q</Queue><Event>a</Event><Filter><S3Key><FilterRule><Name>Prefix</Name><Value>p</Value></FilterRule><FilterRule><Name>Suffix</Name><Value>s</Value></FilterRule></S3Key></Filter></QueueConfiguration>" +
			"<CloudFunctionConfiguration><Id>3</Id><CloudFunction>f</CloudFunction><Event>a</Event></CloudFunctionConfiguration>"},
	} {
		var w Writer
		w.Notification(c.cfg)
		if string(w.B) != c.want {
			t.Errorf("%s\nwant %s", w.B, c.want)
		}
	}
}

// FuzzNotification reads back what it writes of what it read.
func FuzzNotification(f *testing.F) {
	f.Add(notification(""))
	f.Add(notification("<EventBridgeConfiguration/>"))
	f.Add(notification(rule("Topic", "<Id>a</Id>") + rule("Queue", filterOf("<FilterRule><Name>prefix</Name><Value>a/</Value></FilterRule><FilterRule><Name>Suffix</Name><Value>&#10;.jpg</Value></FilterRule>"))))
	f.Add(notification(rule("CloudFunction", "<Event>s3:ObjectCreated:*</Event>") + "<EventBridgeConfiguration></EventBridgeConfiguration>"))
	f.Add(notification(rule("Queue", "<Filter><S3Key><FilterRule/></S3Key></Filter>")))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNotification(b)
		if err != nil {
			return
		}
		cfg := &metapb.NotificationConfig{EventBridge: n.EventBridge}
		for i := range n.Rules {
			r := &n.Rules[i]
			kept := &metapb.NotificationRule{Id: r.ID, Kind: r.Kind, Arn: r.ARN, Events: r.Events}
			for _, x := range r.Filters {
				switch strings.ToLower(x.Name) {
				case "prefix":
					kept.Prefix = x.Value
				case "suffix":
					kept.Suffix = x.Value
				}
			}
			r.Filters = nil
			for _, x := range []*metapb.KV{{Name: "Prefix", Value: kept.Prefix}, {Name: "Suffix", Value: kept.Suffix}} {
				if x.Value != "" {
					r.Filters = append(r.Filters, x)
				}
			}
			cfg.Rules = append(cfg.Rules, kept)
		}
		var w Writer
		w.Start("NotificationConfiguration", true)
		w.Notification(cfg)
		w.Close("NotificationConfiguration")
		again, err := ParseNotification(w.B)
		if err != nil || notificationText(again) != notificationText(n) || !slices.EqualFunc(again.Rules, n.Rules, func(a, b NotificationRule) bool { return slices.Equal(a.Events, b.Events) }) {
			t.Fatalf("%s\n%s, %v, want %s", w.B, notificationText(again), err, notificationText(n))
		}
	})
}

package targets

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// good is a working configuration of each kind: its settings, and its secrets.
func good() map[string][2]map[string]string {
	type m = map[string]string
	access := m{"secret-access-key": "hush"}
	return map[string][2]map[string]string{
		"amqp":     {m{"address": "h:5672", "routing-key": "q", "user": "u"}, m{"password": "hush"}},
		"kafka":    {m{"brokers": "a:9092, b:9092", "topic": "t", "sasl": "PLAIN", "user": "u", "window": "10"}, m{"password": "hush"}},
		"lambda":   {m{"region": "r", "resource": "f", "access-key-id": "a"}, access},
		"log":      {},
		"mqtt":     {m{"address": "h:1883", "topic": "t", "user": "u", "allow-no-subscribers": "true"}, m{"password": "hush"}},
		"nats":     {m{"servers": "a:4222,tls://b:4222", "subject": "s", "window": "3"}, m{"token": "hush"}},
		"postgres": {m{"address": "h:5432", "database": "d", "user": "u", "table": "t", "create-table": "true"}, m{"password": "hush"}},
		"redis":    {m{"address": "h:6379", "stream": "s", "db": "2", "max-len": "5000000000"}, m{"password": "hush"}},
		"sns":      {m{"region": "r", "resource": "arn:aws:sns:r:1:t", "access-key-id": "a"}, access},
		"sqs":      {m{"region": "r", "resource": "https://q.test/1/q", "access-key-id": "a", "endpoint": "https://q.test"}, access},
		"webhook":  {m{"url": "https://h/p", "batch": "10", "timeout": "3s", "ca-file": ""}, m{"secret": "hush", "authorization": "hush"}},
	}
}

func configured(kind string, settings map[string]string) *metapb.SysTarget {
	t := &metapb.SysTarget{Name: "t-1", Kind: kind}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		t.Settings = append(t.Settings, &metapb.KV{Name: name, Value: settings[name]})
	}
	return t
}

func TestKinds(t *testing.T) {
	all := Kinds()
	if !slices.IsSortedFunc(all, func(a, b Kind) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("kinds are not in order")
	}
	configs := good()
	if len(all) != len(configs) {
		t.Errorf("%d kinds, %d tested", len(all), len(configs))
	}
	for _, k := range all {
		c := configs[k.Name]
		st := configured(k.Name, c[0])
		if err := Validate(st, c[1]); err != nil {
			t.Errorf("%s: %v", k.Name, err)
			continue
		}
		to, err := Open(st, c[1])
		if err != nil || (to == nil) != (k.Name == LogKind) {
			t.Errorf("%s: %v, %v", k.Name, to, err)
			continue
		}
		if to != nil {
			if err := to.Close(); err != nil {
				t.Error(k.Name, err)
			}
		}
		seen := map[string]bool{}
		for _, s := range k.Settings {
			if s.Name == "" || s.Help == "" || s.Name != strings.ToLower(s.Name) || seen[s.Name] || s.Required && s.Default != "" {
				t.Errorf("%s: bad setting %+v", k.Name, s)
			}
			seen[s.Name] = true
			settings, secrets := maps.Clone(c[0]), maps.Clone(c[1])
			if s.Required {
				delete(settings, s.Name)
				delete(secrets, s.Name)
				if err := Validate(configured(k.Name, settings), secrets); err == nil || !strings.Contains(err.Error(), s.Name+" is missing") {
					t.Errorf("%s without %s: %v", k.Name, s.Name, err)
				}
			}
		}
	}
}

// TestDefaults: what Kinds shows as default is what is used, or the adapter would refuse it.
func TestDefaults(t *testing.T) {
	for kind, c := range good() {
		k, err := kindOf(kind)
		if err != nil {
			t.Fatal(err)
		}
		settings := maps.Clone(c[0])
		for _, s := range k.Settings {
			if s.Default != "" && settings[s.Name] == "" {
				settings[s.Name] = s.Default
			}
		}
		if err := Validate(configured(kind, settings), c[1]); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		kind            string
		set, secret     map[string]string
		change          func(*metapb.SysTarget)
		want, mentioned string
	}{
		"kind":             {kind: "webhok", want: "is webhook meant?", mentioned: "kafka"},
		"no such kind":     {kind: "carrier-pigeon", want: "there is no kind"},
		"setting":          {kind: "webhook", set: map[string]string{"uri": "http://h"}, want: "is url meant?", mentioned: "authorization"},
		"underscore":       {kind: "sqs", set: map[string]string{"access_key_id": "a"}, want: "is access-key-id meant?"},
		"setting of log":   {kind: "log", set: map[string]string{"url": "http://h"}, want: "has no settings"},
		"open secret":      {kind: "redis", set: map[string]string{"password": "hush"}, want: "password is a secret"},
		"no secret":        {kind: "redis", secret: map[string]string{"user": "hush"}, want: "user is no secret"},
		"unknown secret":   {kind: "redis", secret: map[string]string{"pasword": "hush"}, want: "is password meant?"},
		"number":           {kind: "redis", set: map[string]string{"db": "two"}, want: "give a whole number"},
		"large number":     {kind: "redis", set: map[string]string{"db": "5000000000"}, want: "too large"},
		"duration":         {kind: "redis", set: map[string]string{"timeout": "10"}, want: "with its unit"},
		"no time":          {kind: "redis", set: map[string]string{"timeout": "0s"}, want: "above 0"},
		"truth":            {kind: "redis", set: map[string]string{"tls": "yes"}, want: "true or false"},
		"TLS without TLS":  {kind: "redis", set: map[string]string{"ca-pem": "x"}, want: "add tls=true"},
		"half of TLS":      {kind: "redis", set: map[string]string{"tls": "true", "cert-file": "x"}, want: "both"},
		"http with TLS":    {kind: "webhook", set: map[string]string{"url": "http://h/", "insecure": "true"}, want: "https"},
		"adapter":          {kind: "kafka", set: map[string]string{"topic": "a b"}, want: "topic"},
		"long":             {kind: "webhook", secret: map[string]string{"secret": strings.Repeat("x", SettingMax+1)}, want: "longer"},
		"name":             {kind: "webhook", change: func(t *metapb.SysTarget) { t.Name = "a b" }, want: "give the name"},
		"no name":          {kind: "webhook", change: func(t *metapb.SysTarget) { t.Name = "" }, want: "give the name"},
		"a dot":            {kind: "webhook", change: func(t *metapb.SysTarget) { t.Name = "." }, want: "not as . or .."},
		"two dots":         {kind: "webhook", change: func(t *metapb.SysTarget) { t.Name = ".." }, want: "not as . or .."},
		"long name":        {kind: "webhook", change: func(t *metapb.SysTarget) { t.Name = strings.Repeat("a", NameMax+1) }, want: "give the name"},
		"age":              {kind: "webhook", change: func(t *metapb.SysTarget) { t.AgeMaxMs = -1 }, want: "negative"},
		"policy":           {kind: "webhook", change: func(t *metapb.SysTarget) { t.WhenFull = 7 }, want: "drop or hold"},
		"twice":            {kind: "webhook", change: func(t *metapb.SysTarget) { t.Settings = append(t.Settings, t.Settings[0]) }, want: "twice"},
		"postgres address": {kind: "postgres", set: map[string]string{"address": "h"}, want: "host:port"},
	} {
		base := good()[c.kind]
		settings, secrets := map[string]string{}, map[string]string{}
		maps.Copy(settings, base[0])
		maps.Copy(settings, c.set)
		maps.Copy(secrets, base[1])
		maps.Copy(secrets, c.secret)
		st := configured(c.kind, settings)
		if c.change != nil {
			c.change(st)
		}
		err := Validate(st, secrets)
		if !errs.Is(err, errs.InvalidArgument) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.mentioned) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: shows a secret: %v", name, err)
		}
		if to, err := Open(st, secrets); err == nil || to != nil {
			t.Errorf("%s: was opened", name)
		}
	}
}

// TestTLS: the settings of TLS get to every adapter, whether TLS is a setting or in a URL.
func TestTLS(t *testing.T) {
	for kind, c := range good() {
		if kind == LogKind {
			continue
		}
		k, err := kindOf(kind)
		if err != nil {
			t.Fatal(err)
		}
		settings := maps.Clone(c[0])
		settings["ca-pem"] = "no PEM"
		if _, err := k.setting("tls"); err == nil {
			settings["tls"] = "true"
		}
		st := configured(kind, settings)
		if err := Validate(st, c[1]); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if to, err := Open(st, c[1]); !errs.Is(err, errs.InvalidArgument) || to != nil || !strings.Contains(err.Error(), "not PEM") {
			t.Errorf("%s: %v", kind, err)
		}
		settings["cert-pem"] = "x"
		if err := Validate(configured(kind, settings), c[1]); err == nil || !strings.Contains(err.Error(), "both") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestSeal(t *testing.T) {
	key, other := SealKey{1}, SealKey{2}
	st := &metapb.SysTarget{Name: "a", Secrets: []*metapb.SealedKV{}}
	want := map[string]string{"password": "hush", "token": "", "key-pem": strings.Repeat("k", 5000)}
	for name, secret := range want {
		sealed, err := Seal(key, "a", name, secret)
		if err != nil {
			t.Fatal(err)
		}
		if secret != "" && strings.Contains(string(sealed), secret) {
			t.Error("not sealed at all")
		}
		st.Secrets = append(st.Secrets, &metapb.SealedKV{Name: name, Sealed: sealed})
	}
	got, err := Unseal(key, st)
	if err != nil || !maps.Equal(got, want) {
		t.Fatal(got, err)
	}
	first, _ := Seal(key, "a", "x", "same")
	if second, _ := Seal(key, "a", "x", "same"); string(first) == string(second) {
		t.Error("the nonce is the same twice")
	}
	corrupt := func(what string, k SealKey, st *metapb.SysTarget) {
		t.Helper()
		if got, err := Unseal(k, st); !errs.Is(err, errs.Corrupt) || got != nil || strings.Contains(err.Error(), "hush") {
			t.Error(what, got, err)
		}
	}
	corrupt("another key", other, st)
	corrupt("another target", key, &metapb.SysTarget{Name: "b", Secrets: st.Secrets})
	one := func(name string, sealed []byte) *metapb.SysTarget {
		return &metapb.SysTarget{Name: "a", Secrets: []*metapb.SealedKV{{Name: name, Sealed: sealed}}}
	}
	corrupt("another setting", key, one("y", first))
	for i := range first {
		changed := slices.Clone(first)
		changed[i] ^= 1
		corrupt("a byte changed", key, one("x", changed))
		corrupt("cut", key, one("x", first[:i]))
	}
	if got, err := Unseal(key, &metapb.SysTarget{Name: "a"}); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestMeant(t *testing.T) {
	names := []string{"cert-file", "key-file", "url"}
	for wrong, want := range map[string]string{
		"cert-fil": ": is cert-file meant?", "xyzzyxyzzy": "", "url_": ": is url meant?", strings.Repeat("a", 100): "",
	} {
		if got := meant(wrong, names); got != want {
			t.Errorf("%s: %q, want %q", wrong, got, want)
		}
	}
}

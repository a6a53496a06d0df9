package targets

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cairn/server/target/dialtls"
)

// values reads what a target was told. The first thing that cannot be read is kept in err.
type values struct {
	kind  *kind
	given map[string]string
	err   error
}

// text answers a setting, its default if it was not given.
func (v *values) text(name string) string {
	if s := v.given[name]; s != "" {
		return s
	}
	for _, s := range v.kind.Settings {
		if s.Name == name {
			return s.Default
		}
	}
	v.fail(fmt.Errorf("the kind %s does not declare %s", v.kind.Name, name)) // a mistake in the table of kinds, for its test to find
	return ""
}

// list answers the parts of a setting between commas.
func (v *values) list(name string) []string {
	var parts []string
	for p := range strings.SplitSeq(v.text(name), ",") {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

// number answers a whole number, 0 if there is none.
func (v *values) number(name string) int64 {
	s := v.text(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		v.fail(fmt.Errorf("%s is %.40q: give a whole number", name, s))
	}
	return n
}

// small is number for what must fit an int everywhere.
func (v *values) small(name string) int {
	n := v.number(name)
	if int64(int32(n)) != n {
		v.fail(fmt.Errorf("%s is %d, which is too large", name, n))
	}
	return int(int32(n))
}

func (v *values) duration(name string) time.Duration {
	s := v.text(name)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		v.fail(fmt.Errorf("%s is %.40q: give a duration with its unit, as 10s or 1m30s", name, s))
	}
	if err == nil && d <= 0 {
		v.fail(fmt.Errorf("%s is %v: give a duration above 0", name, d))
	}
	return d
}

func (v *values) truth(name string) bool {
	s := v.text(name)
	switch s {
	case "true":
		return true
	case "false", "":
		return false
	}
	v.fail(fmt.Errorf("%s is %.40q: give true or false", name, s))
	return false
}

// tls answers how TLS is to be done.
func (v *values) tls() dialtls.Config {
	return dialtls.Config{
		CAFile: v.text("ca-file"), CAPEM: v.text("ca-pem"),
		CertFile: v.text("cert-file"), KeyFile: v.text("key-file"),
		CertPEM: v.text("cert-pem"), KeyPEM: v.text("key-pem"),
		ServerName: v.text("server-name"), Insecure: v.truth("insecure"),
	}
}

// optionalTLS is tls where there can be none: nil without tls=true.
func (v *values) optionalTLS() *dialtls.Config {
	c := v.tls()
	if v.truth("tls") {
		return &c
	}
	if c != (dialtls.Config{}) {
		v.fail(errors.New("there are settings for TLS, but no TLS: add tls=true"))
	}
	return nil
}

func (v *values) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}

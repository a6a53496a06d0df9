package config

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
)

// ClusterListenDefault is the address for other nodes where a cluster's node names none.
const ClusterListenDefault = ":9002"

// JoinMax is how many addresses to join may be named.
const JoinMax = 64

// tokenBytesMax is more than any join token has.
const tokenBytesMax = 4 << 10

// InCluster reports whether this process is a node of a cluster: any setting of that section is there.
func (c *Config) InCluster() bool {
	return c.Node != "" || c.Zone != "" || c.ClusterInit || len(c.Join) > 0 || c.JoinToken != "" ||
		c.ClusterListen != "" || c.ClusterAdvertise != "" || c.ClusterPlaintext || c.SimulateNetwork != ""
}

// Advertise is the cluster address as other nodes reach it: the one that was set,
// else the port of ClusterListen at its host or, if that is every interface, at
// this machine's host name. Call it in a cluster only.
func (c *Config) Advertise() (string, error) {
	if c.ClusterAdvertise != "" {
		return c.ClusterAdvertise, nil
	}
	host, port, err := net.SplitHostPort(c.ClusterListen)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("this machine has no host name (%w): set cluster-advertise to HOST:PORT as the other nodes reach it", err)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// Token is the join token, read from its file if one is named; "" if none was
// set. It is needed for the first start only, so a file that is gone by then is
// no fault of later ones: ask only where there is no membership yet.
func (c *Config) Token() (string, error) {
	path, ok := strings.CutPrefix(c.JoinToken, "@")
	if !ok {
		return strings.TrimSpace(c.JoinToken), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the join token's file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, tokenBytesMax))
	if err != nil {
		return "", fmt.Errorf("the join token's file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("the join token's file %s is empty: write into it what 'cairn cluster token' prints on a member", path)
	}
	return token, nil
}

func (c *Config) checkCluster(bad func(string, ...any)) {
	if !c.InCluster() {
		return
	}
	name := regexp.MustCompile(zonePattern)
	for _, n := range []struct{ flag, value, example string }{{"node", c.Node, "n1"}, {"zone", c.Zone, "a"}} {
		switch {
		case n.value == "":
			bad("%s is not set, but another setting of a cluster is: give this node its %s, as in --%s %s", n.flag, n.flag, n.flag, n.example)
		case !name.MatchString(n.value):
			bad("%s is %q: use lower-case letters, digits, dot, dash and underscore, 63 at most", n.flag, n.value)
		}
	}
	listen := c.ClusterListen
	if listen == "" {
		listen = ClusterListenDefault
	}
	checkAddress("cluster-listen", listen, bad)
	for _, other := range []struct{ flag, addr string }{{"listen", c.Listen}, {"admin-listen", c.AdminListen}} {
		if listen == other.addr && !strings.HasSuffix(listen, ":0") {
			bad("cluster-listen and %s are both %s: give them different ports", other.flag, listen)
		}
	}
	if c.ClusterAdvertise != "" {
		checkReachable("cluster-advertise", c.ClusterAdvertise, bad)
	}
	if c.ClusterInit && c.JoinToken != "" {
		bad("cluster-init and join-token are both set: only nodes that join need a token")
	}
	if len(c.Join) > JoinMax {
		bad("join names %d addresses: %d at most", len(c.Join), JoinMax)
	}
	for i, addr := range c.Join {
		checkReachable("join", addr, bad)
		if slices.Contains(c.Join[:i], addr) {
			bad("join names %s twice", addr)
		}
	}
	if c.Zones > 1 {
		bad("zones is %d on a node of a cluster: it stands in one zone, %q; zones simulates several in one process", c.Zones, c.Zone)
	}
	for _, d := range c.Drives {
		if d.Zone != "" && d.Zone != c.Zone {
			bad("drive %s: its zone %q is not the node's, %q: leave the drive's zone out", d.Path, d.Zone, c.Zone)
		}
	}
}

// checkReachable checks an address that others dial: it needs a host and a fixed port.
func checkReachable(name, addr string, bad func(string, ...any)) {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || port == "0" || ip != nil && ip.IsUnspecified()) {
		bad("%s is %q: want the host and port that other nodes can reach, as in 10.0.0.1:9002", name, addr)
		return
	}
	checkAddress(name, addr, bad)
}

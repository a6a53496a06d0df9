package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestNoClusterFlagIsOneProcess(t *testing.T) {
	c, err := load(t)
	if err != nil || c.InCluster() || c.ClusterListen != "" {
		t.Fatalf("%v %+v", err, c)
	}
	if token, err := c.Token(); token != "" || err != nil {
		t.Fatalf("token %q %v", token, err)
	}
}

func TestClusterNode(t *testing.T) {
	c, err := load(t, "--data-dir", "/srv/n", "--node", "n2", "--zone", "east", "--join", "10.0.0.1:9002,10.0.0.2:9002",
		"--join-token", "abc", "--drives-per-zone", "2")
	if err != nil {
		t.Fatal(err)
	}
	if !c.InCluster() || c.ClusterListen != ClusterListenDefault || !reflect.DeepEqual(c.Join, []string{"10.0.0.1:9002", "10.0.0.2:9002"}) {
		t.Fatalf("%+v", c)
	}
	list, err := c.DriveList()
	if err != nil || len(list) != 2 || list[1] != (DriveSpec{Path: "/srv/n/zone-east/drive-2", Zone: "east"}) {
		t.Fatalf("%v %v", list, err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ listen, advertise, want string }{
		{":9002", "", host + ":9002"}, {"0.0.0.0:7", "", host + ":7"}, {"[::]:7", "", host + ":7"},
		{"10.1.1.1:9002", "", "10.1.1.1:9002"}, {":9002", "n2.example.com:19002", "n2.example.com:19002"},
	} {
		c.ClusterListen, c.ClusterAdvertise = test.listen, test.advertise
		if got, err := c.Advertise(); err != nil || got != test.want {
			t.Errorf("%s %s: %s %v, want %s", test.listen, test.advertise, got, err, test.want)
		}
	}
}

func TestClusterFileAndVariables(t *testing.T) {
	f := file(t, "node: n1\nzone: a\ncluster-plaintext: true\njoin: [h1:9002, h2:9002]\ndrives: [{path: /mnt/x}]\n")
	c, err := load(t, "--config", f)
	if err != nil || !c.ClusterPlaintext || len(c.Join) != 2 || c.Join[1] != "h2:9002" {
		t.Fatalf("%v %+v", err, c)
	}
	if list, _ := c.DriveList(); list[0].Zone != "a" {
		t.Errorf("drives %v", list)
	}
	if c, err = load(t, "--config", file(t, "node: n1\nzone: a\njoin: h1:9002,h2:9002\n")); err != nil || len(c.Join) != 2 {
		t.Errorf("join as one value: %v %v", c.Join, err)
	}
	t.Setenv("CAIRN_NODE", "n3")
	t.Setenv("CAIRN_ZONE", "b")
	t.Setenv("CAIRN_CLUSTER_INIT", "true")
	if c, err = load(t); err != nil || !c.ClusterInit || c.Node != "n3" {
		t.Errorf("variables: %v %+v", err, c)
	}
}

func TestJoinTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	c := Config{JoinToken: "@" + path}
	if _, err := c.Token(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	for text, want := range map[string]string{"abc\n": "abc", " \n": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Token(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
}

func TestClusterRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no node":       {func(c *Config) { c.Node = "" }, "node is not set"},
		"no zone":       {func(c *Config) { c.Zone = "" }, "zone is not set"},
		"node name":     {func(c *Config) { c.Node = "Node 1" }, "node is \"Node 1\""},
		"zone name":     {func(c *Config) { c.Zone = "a/b" }, "zone is \"a/b\""},
		"listen":        {func(c *Config) { c.ClusterListen = "9002" }, "cluster-listen is \"9002\""},
		"same port":     {func(c *Config) { c.ClusterListen = c.AdminListen }, "cluster-listen and admin-listen are both"},
		"advertise all": {func(c *Config) { c.ClusterAdvertise = "0.0.0.0:9002" }, "other nodes can reach"},
		"advertise":     {func(c *Config) { c.ClusterAdvertise = "host" }, "cluster-advertise is"},
		"join port":     {func(c *Config) { c.Join = []string{"h:0"} }, "other nodes can reach"},
		"join no host":  {func(c *Config) { c.Join = []string{":9002"} }, "other nodes can reach"},
		"join twice":    {func(c *Config) { c.Join = []string{"h:1", "h:1"} }, "twice"},
		"init token":    {func(c *Config) { c.ClusterInit, c.JoinToken = true, "x" }, "only nodes that join"},
		"zones":         {func(c *Config) { c.Zones = 3 }, "stands in one zone"},
		"drive's zone":  {func(c *Config) { c.Drives = []DriveSpec{{Path: "/a", Zone: "z"}} }, "is not the node's"},
	} {
		c := Default()
		c.Node, c.Zone = "n1", "a"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		test.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
}

// Package server puts a node together: the planes, the S3 API, the admin API and
// their listeners. It is the only package that knows all of them.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"cairn/s3api"
	"cairn/s3api/objects"
	"cairn/server/admin"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/server/metrics"
	"cairn/server/status"
	"cairn/server/tlsreload"
)

// Server is one node. Make it with New and run it once.
type Server struct {
	cfg  config.Config
	env  core.Env
	root config.Credentials
	tls  *tlsreload.Pair // nil: plain HTTP

	started time.Time
	core    *core.Core
	metrics *metrics.Metrics
	state   struct {
		sync.Mutex
		s3Addr, adminAddr net.Addr
		ready             bool
	}
}

// New checks what can be checked before anything is started or written but the
// data folder and the root keys.
func New(cfg config.Config, env core.Env) (*Server, error) {
	env.SetDefaults()
	s := &Server{cfg: cfg, env: env}
	var err error
	if s.root, _, err = cfg.Root(); err != nil {
		return nil, err
	}
	if cfg.TLSCert != "" {
		if s.tls, err = tlsreload.Load(cfg.TLSCert, cfg.TLSKey, env.Logger); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Addrs are the addresses of the S3 and the admin API, nil before they listen.
func (s *Server) Addrs() (s3, admin net.Addr) {
	s.state.Lock()
	defer s.state.Unlock()
	return s.state.s3Addr, s.state.adminAddr
}

// Run opens the store and serves until ctx ends, then stops within
// ShutdownBound: listeners first, requests under way, workers, planes, drives.
func (s *Server) Run(ctx context.Context) (err error) {
	if s.cfg.MemoryLimit > 0 {
		debug.SetMemoryLimit(int64(s.cfg.MemoryLimit))
	}
	s.started = s.env.Now()
	// Addresses first: a port that is taken should not cost the opening of the store.
	s3Listener, err := listen(ctx, "S3", "--listen", s.cfg.Listen)
	if err != nil {
		return err
	}
	defer s3Listener.Close()
	adminListener, err := listen(ctx, "admin", "--admin-listen", s.cfg.AdminListen)
	if err != nil {
		return err
	}
	defer adminListener.Close()
	if s.core, err = core.Open(ctx, s.cfg, s.env); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.core.Close()) }()
	return s.serve(ctx, s3Listener, adminListener)
}

func listen(ctx context.Context, what, flag, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("the %s address %s cannot be used: %w; choose another with %s", what, addr, err, flag)
	}
	return l, nil
}

// serve answers requests until ctx ends.
func (s *Server) serve(ctx context.Context, s3Listener, adminListener net.Listener) error {
	s.metrics = metrics.New(s.Status)
	if n := s.cfg.BucketGauges; n > 0 {
		s.metrics.WatchBuckets(func(ctx context.Context) ([]status.BucketUsage, bool, error) { return s.core.BucketUsage(ctx, n) }, time.Now)
	}
	s.metrics.WatchEvents(func(ctx context.Context) ([]status.EventLoad, []status.BucketLoad, error) {
		return s.core.Events.Counts(ctx, s.cfg.BucketGauges)
	}, time.Now)
	api, err := s3api.New(s.s3Config(), s.core.Objects)
	if err != nil {
		return err
	}
	// ReadTimeout and WriteTimeout would cut long transfers; s3api bounds stalled ones itself. Of HTTP/2 it bounds the streams,
	// and this their connection.
	s3Server := &http.Server{Handler: api, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		HTTP2:          &http.HTTP2Config{WriteByteTimeout: s3api.DefaultIdleTimeout},
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.env.Logger.Handler(), slog.LevelDebug)}
	adminServer := &http.Server{
		Handler:           admin.New(s, admin.Config{AccessKey: s.root.AccessKey, SecretKey: s.root.SecretKey, Metrics: s.metrics.Handler(), Logger: s.env.Logger}),
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: s3Server.ErrorLog,
	}
	failed := make(chan error, 2)
	go func() { failed <- s.serveS3(s3Server, s3Listener) }()
	go func() { failed <- adminServer.Serve(adminListener) }()
	watching, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	if s.tls != nil {
		go s.tls.Watch(watching, 10*time.Second)
	}
	s.setReady(s3Listener.Addr(), adminListener.Addr(), true)
	s.env.Logger.Info("serving", "s3", s.url(), "admin", "http://"+adminListener.Addr().String(), "store", s.core.Controller.StoreID())
	s.sayWhatWasNotReached(ctx)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.setReady(s3Listener.Addr(), adminListener.Addr(), false)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownBound)
	defer cancel()
	if serr := s3Server.Shutdown(stop); serr != nil {
		s.env.Logger.Warn("requests still under way at the end of the shutdown time were cut off", "after", s.cfg.ShutdownBound)
		s3Server.Close()
	}
	adminServer.Close()
	return err
}

func (s *Server) serveS3(srv *http.Server, l net.Listener) error {
	if s.tls == nil {
		return srv.Serve(l)
	}
	srv.TLSConfig = s.tls.Config()
	return srv.ServeTLS(l, "", "")
}

func (s *Server) setReady(s3, admin net.Addr, ready bool) {
	s.state.Lock()
	defer s.state.Unlock()
	s.state.s3Addr, s.state.adminAddr, s.state.ready = s3, admin, ready
}

func (s *Server) url() string {
	scheme := "http://"
	if s.tls != nil {
		scheme = "https://"
	}
	addr, _ := s.Addrs()
	if addr == nil {
		return scheme + s.cfg.Listen
	}
	return scheme + addr.String()
}

// s3Config is the S3 API's, with the accounts of the configuration.
func (s *Server) s3Config() s3api.Config {
	type account struct {
		secret string
		acct   objects.Account
	}
	keys := map[string]account{s.root.AccessKey: {s.root.SecretKey, objects.Account{ID: config.AccountID("root"), DisplayName: "root"}}}
	for _, a := range s.cfg.Accounts {
		keys[a.AccessKey] = account{a.SecretKey, objects.Account{ID: a.ID, DisplayName: a.Name}}
	}
	ids := make(map[string]bool, len(keys))
	for _, a := range keys {
		ids[a.acct.ID] = true
	}
	return s3api.Config{
		Region: s.cfg.Region, Domains: s.cfg.Domains, Now: s.env.Now, RequestsMax: s.cfg.MaxRequests,
		Logger: s.env.Logger, Metrics: s.metrics,
		Accounts: func(accessKey string) (string, objects.Account, bool) {
			a, ok := keys[accessKey]
			return a.secret, a.acct, ok
		},
		AccountExists: func(id string) bool { return ids[id] },
		Expiry:        s.core.Expiry,
		Destinations:  s.core.Events,
	}
}

// sayWhatWasNotReached logs each storage class whose target these drives cannot meet.
func (s *Server) sayWhatWasNotReached(ctx context.Context) {
	st, err := s.Status(ctx)
	if err != nil {
		return
	}
	for _, p := range st.Plans {
		if !p.Met {
			s.env.Logger.Warn("storage class below its target", "class", p.Class, "target", p.Target, "survives", p.Survives, "why", p.Why)
		}
	}
}

// Ready is nil if reads and writes are served.
func (s *Server) Ready() error {
	s.state.Lock()
	ready := s.state.ready
	s.state.Unlock()
	if !ready {
		return errors.New("starting or stopping")
	}
	return s.core.Ready()
}

// Verify checks everything, see package verify.
func (s *Server) Verify(ctx context.Context, progress func(status.Progress)) (status.Report, error) {
	return s.core.Verify(ctx, true, progress)
}

// NewToken makes a token that lets one node join the cluster.
func (s *Server) NewToken(ctx context.Context, valid time.Duration) (string, error) {
	return s.core.NewToken(ctx, valid)
}

// LifecycleStatus is what the lifecycle workers of all nodes say.
func (s *Server) LifecycleStatus(ctx context.Context) []status.Lifecycle {
	return s.core.LifecycleStatus(ctx)
}

// Env is what a process gets from outside, see core.Env.
type Env = core.Env

// Status is what this node says of itself and of the store.
func (s *Server) Status(ctx context.Context) (status.Status, error) {
	st := s.core.Status(ctx)
	st.Started, st.S3 = s.started, s.url()
	if err := s.Ready(); err != nil {
		st.NotReady = err.Error()
	} else {
		st.Ready = true
	}
	return st, nil
}

// VerifyOffline opens the store in stopped folders without network faces and
// background workers, verifies it and closes it. Nothing is changed but what
// starting the metadata plane changes: where there is no store, none is made, and a
// node of a cluster is refused.
func VerifyOffline(ctx context.Context, cfg config.Config, progress func(status.Progress)) (report status.Report, err error) {
	c, err := core.Open(ctx, cfg, core.Env{MustExist: true, Tune: func(t *core.Tuning) { t.Workers = false }})
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Verify(ctx, false, progress)
}

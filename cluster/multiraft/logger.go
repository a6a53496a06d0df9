package multiraft

import (
	"context"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger passes raft's warnings on to slog. raft calls much an error that is
// routine while a peer is away or an election runs: those lines, and everything below a warning, are
// dropped unless the logger takes debug.
type raftLogger struct {
	log  *slog.Logger
	name string
}

var _ hclog.Logger = raftLogger{}

// routine are the beginnings of lines that say nothing which Status does not.
var routine = []string{
	"failed to heartbeat", "failed to appendEntries", "failed to make requestVote", "failed to install snapshot",
	"failed to send snapshot", "failed to contact", "failed to get log", "failed to get previous log", "heartbeat timeout reached",
	"no known peers", "not part of stable configuration", "rejecting ", "appendEntries rejected",
	"peer has newer term", "Election timeout reached", "failed to take snapshot", "unable to get address",
	"skipping application", "previous log term mis-match", "clearing log suffix", "duplicate requestVote",
	"failed to commit logs", "failed to append to logs", "installSnapshot rejected", "failed to restore snapshot",
}

func (l raftLogger) Log(level hclog.Level, msg string, args ...any) {
	lv := slog.LevelDebug
	if level >= hclog.Warn {
		lv = slog.LevelWarn
		for _, r := range routine {
			if strings.HasPrefix(msg, r) {
				lv = slog.LevelDebug
				break
			}
		}
	}
	if !l.log.Enabled(context.Background(), lv) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = f[len(f)-1]
		}
	}
	l.log.Log(context.Background(), lv, "raft: "+msg, args...)
}

func (l raftLogger) Trace(string, ...any) {}
func (l raftLogger) Debug(msg string, args ...any) {
	if l.IsDebug() {
		l.Log(hclog.Debug, msg, args...)
	}
}
func (l raftLogger) Info(msg string, args ...any) {
	if l.IsDebug() {
		l.Log(hclog.Info, msg, args...)
	}
}
func (l raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l raftLogger) IsTrace() bool { return false }
func (l raftLogger) IsDebug() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }
func (l raftLogger) IsInfo() bool  { return l.IsDebug() }
func (l raftLogger) IsWarn() bool  { return true }
func (l raftLogger) IsError() bool { return true }

func (l raftLogger) ImpliedArgs() []any               { return nil }
func (l raftLogger) With(args ...any) hclog.Logger    { return raftLogger{l.log.With(args...), l.name} }
func (l raftLogger) Name() string                     { return l.name }
func (l raftLogger) Named(name string) hclog.Logger   { return raftLogger{l.log, name} }
func (l raftLogger) ResetNamed(n string) hclog.Logger { return raftLogger{l.log, n} }
func (l raftLogger) SetLevel(hclog.Level)             {}
func (l raftLogger) GetLevel() hclog.Level            { return hclog.Warn }
func (l raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
func (l raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }

package repair

import (
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"time"

	"cairn/storage"
)

// Progress keeps a few bytes over restarts: a small file. Losing it costs a pass begun anew, nothing else.
type Progress interface {
	// Load answers what was saved last, or nil.
	Load() ([]byte, error)
	// Save replaces it, durably or not.
	Save([]byte) error
}

// progressFormat is the version of the record, JSON of this form:
//
//	{"format":1,"pg":7,"chunk":"<32 hex digits>","pass_started_ms":0,"pass_ended_ms":0}
const progressFormat = 1

// progress is how far scrub is.
type progress struct {
	PG            storage.PGID    // being read; groups below are done
	Chunk         storage.ChunkID // chunks below are done
	PassStartedMS int64           // 0: between passes
	PassEndedMS   int64           // of the latest pass; 0: none
}

type progressJSON struct {
	Format        int    `json:"format"`
	PG            uint32 `json:"pg"`
	Chunk         string `json:"chunk"`
	PassStartedMS int64  `json:"pass_started_ms"`
	PassEndedMS   int64  `json:"pass_ended_ms"`
}

// saveEvery bounds how much work a crash repeats.
const saveEvery = time.Minute

// save saves the state if the latest time was a while ago, or now.
func (s *Scrub) save(now bool) error {
	if s.cfg.Progress == nil || !now && s.cfg.Now().Sub(s.saved) < saveEvery {
		return nil
	}
	b, err := json.Marshal(progressJSON{progressFormat, uint32(s.state.PG), s.state.Chunk.String(), s.state.PassStartedMS, s.state.PassEndedMS})
	if err != nil {
		return err
	}
	s.saved = s.cfg.Now()
	return s.cfg.Progress.Save(b)
}

// loadProgress answers the zero state if there is none that can be read.
func loadProgress(p Progress, log *slog.Logger) (out progress) {
	if p == nil {
		return out
	}
	b, err := p.Load()
	if err != nil || len(b) == 0 {
		return out
	}
	var j progressJSON
	chunk, herr := []byte(nil), error(nil)
	if err = json.Unmarshal(b, &j); err == nil {
		chunk, herr = hex.DecodeString(j.Chunk)
	}
	if err != nil || herr != nil || j.Format != progressFormat || len(chunk) != len(out.Chunk) {
		log.Warn("scrub: progress cannot be read; a new pass begins", "progress", string(b))
		return out
	}
	return progress{storage.PGID(j.PG), storage.ChunkID(chunk), j.PassStartedMS, j.PassEndedMS}
}

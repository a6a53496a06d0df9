package checksum

import (
	"crypto/md5"
	"hash"
	"sync"

	md5simd "github.com/minio/md5-simd"
)

// Measured (AVX-512, 16 MiB bodies), CPU seconds per GB: crypto/md5 1.2 whatever
// the number of streams; in lanes 1.7 for one stream, 1.1 for 4, 0.6 for 8, 0.3 for 16.
const (
	lanesFrom    = 4       // large bodies at once from which on lanes pay
	laneBytesMin = 1 << 20 // bytes of a body that counts as large
	lanesMax     = 64      // hashers in lanes; further bodies are hashed for themselves
)

// MD5s makes the MD5 hashes of bodies. Those of many large bodies at once are
// computed side by side in the lanes of vector registers. The zero value is ready; safe for concurrent use.
type MD5s struct {
	mu     sync.Mutex
	large  int // large bodies being hashed now
	made   int // hashers made: the library does not forget one, so they are used again
	free   []md5simd.Hasher
	server md5simd.Server // nil until it pays
	closed bool
}

// MD5 is one hash. Release must be called when it is not needed any more.
type MD5 struct {
	hash.Hash
	from  *MD5s
	lane  md5simd.Hasher // the Hash, if it is one in lanes
	large bool
}

// New makes the hash of a body of about size bytes.
func (m *MD5s) New(size int64) *MD5 {
	h := &MD5{from: m, large: size >= laneBytesMin}
	if h.large {
		h.lane = m.enter()
	}
	if h.lane != nil {
		h.Hash = h.lane
	} else {
		h.Hash = md5.New()
	}
	return h
}

// enter counts a large body and answers a hasher in lanes if it pays.
func (m *MD5s) enter() md5simd.Hasher {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.large++
	if m.large < lanesFrom || m.closed {
		return nil
	}
	if n := len(m.free); n > 0 {
		h := m.free[n-1]
		m.free = m.free[:n-1]
		return h
	}
	if m.made == lanesMax {
		return nil
	}
	if m.server == nil {
		m.server = md5simd.NewServer()
	}
	m.made++
	return m.server.NewHash()
}

// Release gives the hash back. Nothing of it may be used afterwards.
func (h *MD5) Release() {
	if !h.large {
		return
	}
	h.large = false
	if h.lane != nil {
		h.lane.Reset() // may wait for what is being hashed, so not under the lock
	}
	m := h.from
	m.mu.Lock()
	defer m.mu.Unlock()
	m.large--
	if h.lane != nil {
		m.free = append(m.free, h.lane)
		h.lane = nil
	}
	m.endLocked()
}

// Close ends the goroutine behind the lanes, once the last hash is released.
func (m *MD5s) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.endLocked()
}

func (m *MD5s) endLocked() {
	if m.closed && m.server != nil && len(m.free) == m.made {
		m.server.Close()
		m.server, m.free = nil, nil
	}
}

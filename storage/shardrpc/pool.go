package shardrpc

import (
	"math/bits"
	"sync"
)

// pool keeps buffers for payloads, in sizes four to a power of two. It is a mem.BufferPool.
type pool struct {
	classes [4 * (poolLargest - poolSmallest + 1)]sync.Pool
}

const (
	poolSmallest = 12 // log2; smaller buffers are as large as that
	poolLargest  = 24 // log2; what is larger is not kept
)

// classOf is the index and the size of the class for n bytes.
func classOf(n int) (class, size int) {
	if n <= 1<<poolSmallest {
		return 0, 1 << poolSmallest
	}
	log := bits.Len(uint(n - 1)) // 1<<(log-1) < n <= 1<<log
	quarter := 1 << (log - 3)
	quarters := (n - 1<<(log-1) + quarter - 1) / quarter // 1 to 4
	return 4*(log-1-poolSmallest) + quarters, 1<<(log-1) + quarters*quarter
}

// Get is a buffer of n bytes with any content.
func (p *pool) Get(n int) *[]byte {
	class, size := classOf(n)
	if class < len(p.classes) {
		if b, ok := p.classes[class].Get().(*[]byte); ok {
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n, size)
	return &b
}

// Put takes a buffer back that Get answered.
func (p *pool) Put(b *[]byte) {
	if class, size := classOf(cap(*b)); class < len(p.classes) && size == cap(*b) {
		p.classes[class].Put(b)
	}
}

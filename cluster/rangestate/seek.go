package rangestate

import (
	"bytes"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"cairn/storage/errs"
)

// seekMin is from how many keys on a command reads rows with a seeker: two iterators cost about as much as a few gets.
const seekMin = 16

// seeker gets rows whose keys rise, as those of a bulk command mostly do, for a fraction of what a get of each costs: it goes on
// from the last row instead of finding its way through all levels of the store anew. It sees the state as it was when
// it was made, so it is of use only for rows that its command has not written.
type seeker struct {
	it   *pebble.Iterator
	last []byte // the key asked for last
}

// newSeeker makes one for the rows of a kind and bucket.
func (m *Machine) newSeeker(kind byte, bucket uint64) (*seeker, error) {
	start := appendRaw(nil, kind, bucket, "")
	it, err := m.b.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: prefixEnd(bytes.Clone(start))})
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	return &seeker{it: it}, nil
}

// rises reports whether key is above all that were asked for. Others the seeker cannot tell of: the command may have written them.
func (s *seeker) rises(key []byte) bool { return s != nil && bytes.Compare(key, s.last) > 0 }

// get is getRow of a key that rises.
func (s *seeker) get(key []byte, row decoder) (bool, error) {
	s.last = append(s.last[:0], key...)
	if !s.it.SeekPrefixGE(key) {
		if err := s.it.Error(); err != nil {
			return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
		}
		return false, nil
	}
	if !bytes.Equal(s.it.Key(), key) {
		return false, nil
	}
	return true, decode(key, s.it.ValueAndErr, row)
}

// seekers are those of the command under way.
type seekers struct {
	current, outcome *seeker // nil: none
}

// seek gives the command seekers for the bucket's rows, until end is called.
func (m *Machine) seek(bucket uint64) error {
	var err1, err2 error
	m.seekers.current, err1 = m.newSeeker(kindCurrent, bucket)
	m.seekers.outcome, err2 = m.newSeeker(kindOutcome, bucket)
	return errors.Join(err1, err2)
}

// pass has rows of keys up to this one read without the seekers from now on.
func (s *seekers) pass(bucket uint64, key []byte) {
	if c := s.current; c != nil {
		if raw := appendRaw(nil, kindCurrent, bucket, key); c.rises(raw) {
			c.last = raw
		}
	}
}

// end lets go of the seekers.
func (s *seekers) end() error {
	var all []error
	for _, x := range []*seeker{s.current, s.outcome} {
		if x != nil {
			all = append(all, x.it.Close())
		}
	}
	*s = seekers{}
	if err := errors.Join(all...); err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	return nil
}

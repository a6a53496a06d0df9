package cluster

// Entry is one committed Raft command as a state machine sees it.
type Entry struct {
	Index  uint64
	Term   uint64
	TimeMS int64  // stamped by the leader at propose, unix ms; the state machine clamps it to its own rising time
	Data   []byte // the command; not retained after Apply returns
	Config uint64 // index of the entry that set the group's configuration, as of this entry
	Birth  bool   // proposed as a command that may give birth to a group; no other may
}

// KeySpan is a half-open span [Start, End) of raw keys in a state store.
type KeySpan struct{ Start, End []byte }

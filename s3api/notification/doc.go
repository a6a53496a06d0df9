// Package notification is what S3's event notifications mean: which events there are, which configurations are taken, which rule of one
// wants an event, and what is sent of it. It is pure: what it needs to know is given, ids and times included.
//
// # Events
//
// All events that S3 has can be asked for, but for those that could never come here, which are refused by name rather than taken and
// never sent: s3:ReducedRedundancyLostObject (objects of that class are kept like all others) and s3:Replication:*. s3:ObjectAcl:Put can be asked
// for and does not come as long as the only ACL that an object can have is its owner's: as in S3, a request that changes
// no ACL makes no event.
//
// # Overlap
//
// As in S3, two rules that want an event in common must not both match some key, so an event goes to one destination at most, and to
// EventBridge. An event that stands twice in one rule, be it through a *, is refused too.
//
// # Filters
//
// A filter's value is compared with keys as records write them, as in S3: year%3D2026/ is meant where keys begin with year=2026/, a plus
// is a space, and a star is a star. In S3 a special character that was not written so never matches; here it stands for itself.
//
// # What is sent
//
// Records are S3's: of version 2.1, and 2.3 for what came later (lifecycle, tiering, tags, ACLs, the end of a restored copy). Deletions
// say neither size nor ETag, delete markers the ETag of nothing, changes of tags and ACLs no size. What S3 leaves out of some
// events and is here in all is the sequencer: it alone tells a repeat from another event. What the store does by itself has
// s3.amazonaws.com for its requester and its address, as in S3.
package notification

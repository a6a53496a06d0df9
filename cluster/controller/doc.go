// Package controller keeps a node's drives and the recorded topology true to
// each other: it makes a new store or opens an existing one, watches the drives,
// records in the system group what it sees, replaces lost drives and voters, and
// publishes the topology to everyone else in the process.
//
// # Slots
//
// A slot is a configured folder in a zone. The drive in it is known by its
// identity file. The system group records for every drive the slot it lies in:
// the path relative to the data folder for drives below it (so that the folder
// can be moved as a whole), else the absolute path.
//
// # What a start does
//
//   - Nothing anywhere: a new store. Folders are made below the data folder and,
//     for drives elsewhere, if their parent exists.
//   - Drives of one store: that store, if each stands in its zone. A drive that
//     moved within its zone is recorded at its new place.
//   - A slot whose drive is gone: the store starts without it if every group of
//     the metadata plane keeps a majority; the drive is recorded as down.
//   - An empty folder where a drive is recorded: that drive is replaced by a new,
//     empty one, which is filled from the others.
//   - More slots than drives: new drives join. Fewer: refused; a drive cannot be retired yet.
//   - Everything else is refused before anything is written, and the refusal names
//     folder, reason and next step: folders with foreign files, drives of another
//     store, drives in the wrong zone, copies of a drive, old images of a drive,
//     drives that were replaced, a second process.
//
// # Files in the data folder
//
//	cairn.lock, cairn.pid   held while a process runs; its process id. Every drive has the same pair.
//	drives.json             what was recorded last about drives and voters of this node, for judging a
//	                        situation before the metadata plane is up: start counters above all
//	                        (design rule 1). Written anew when it is lost.
//	bootstrap.json          there only while a new store is being made: all ids that were
//	                        drawn, so that a start after a crash goes on and does not begin a second store.
//
// # While running
//
// Every slot has a goroutine that does all input and output on the folder, so a
// hung drive holds up nobody else. A drive that fails or whose folder vanishes is
// dropped at once and recorded as down; one whose folder comes back with the
// same identity is opened again, one that failed with an I/O error only after its
// folder was away or the process started anew (what the page cache says after a
// failed fsync is not what the disk says). An empty folder at the slot of a drive
// that is down, seen twice, becomes a new drive. If the drive was a mount
// point, the bare mount point is not taken for an empty drive.
//
// # A node of a cluster
//
// With Config.Cluster the process is one node of several. node.json in the data
// folder says which, of which store, and where the others were last. What differs:
//
//   - A start waits for no other node. It opens the drives, publishes the topology
//     of its own copy of the system group, and then finds the others: by the addresses
//     recorded, by those that nodes announce to each other without any quorum, and by those configured.
//   - Every node keeps a session with the node that leads the system group, which
//     holds the sessions in memory. A node that is silent for SessionTimeout is
//     recorded as down together with its drives; one that stops says so. A new leader
//     lets everybody show up for LeaderGrace first. The name of a node
//     belongs to the process whose session lives: a second one gets none.
//   - The topology comes from the node's own copy of the system group: it is a voter or
//     follows it. Before it has one, or if that lags, the leader is asked.
//   - Each node records the states of its own drives, and that its replicas are lost. The
//     node that leads the system group makes placement groups for drives that join and
//     empties nodes that leave. The node that leads a group places its voters, and the
//     system group's followers: in as many zones and on as many nodes as there are,
//     each replica recorded before it is made; and it hands the group on, so that leaders are spread.
//   - A node removes a replica that is not recorded (any more) by itself.
//   - The renewal of a session also grants a lease on the configuration (ConfigRead):
//     whoever changes that waits until every node has answered that it will act on
//     nothing older, or has lost its lease (AwaitConfig, design rule 9).
package controller

package drive

import (
	"encoding/json"
	"errors"
	"io"
	"os"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Names in a drive's directory.
const (
	identityName = "drive.json"
	lockName     = "drive.lock"
	extentsName  = "extents"
	indexName    = "index"
	rebuildName  = "index.rebuild"

	// FormatVersion is the newest format of a drive that this release reads and the one it writes.
	FormatVersion = 1

	identityBytesMax = 64 << 10
)

// Identity says who a drive is. It lies in drive.json, ids in hex.
type Identity struct {
	Format  int // FormatVersion
	StoreID string
	DriveID storage.DriveID
	Node    string
	Zone    string
	Path    string // as configured when it was formatted
	Starts  uint64 // start counter (design rule 1); who counts writes it with WriteIdentity before Open
}

type identityJSON struct {
	Format  int    `json:"format"`
	StoreID string `json:"store_id"`
	DriveID string `json:"drive_id"`
	Node    string `json:"node"`
	Zone    string `json:"zone"`
	Path    string `json:"path"`
	Starts  uint64 `json:"starts"`
}

// State is what Inspect found.
type State int

// States of a directory.
const (
	Missing      State = iota // there is no such directory
	Empty                     // empty, but for lost+found and what a broken off Format leaves
	Formatted                 // a drive
	ForeignFiles              // files that are not ours
)

func (s State) String() string {
	return [...]string{"missing", "empty", "formatted", "foreign files"}[s]
}

// Inspect looks at a directory without changing it. The identity is valid only
// with Formatted. The error is that of an I/O, or Corrupt if drive.json is there and can't be read.
func Inspect(fs vfsx.FS, dir string) (State, Identity, error) {
	names, err := fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return Missing, Identity{}, nil
	}
	if err != nil {
		return Missing, Identity{}, errs.Wrap(errs.DriveFailed, "drive.inspect", dir, err)
	}
	state := Empty
	for _, name := range names {
		switch name {
		case identityName:
			id, err := ReadIdentity(fs, dir)
			return Formatted, id, err
		case "lost+found", identityName + ".tmp":
		case extentsName, indexName:
			inside, err := fs.List(fs.PathJoin(dir, name))
			if err != nil || len(inside) > 0 {
				state = ForeignFiles
			}
		default:
			state = ForeignFiles
		}
	}
	return state, Identity{}, nil
}

// Format makes a drive of a directory that is missing or empty; otherwise
// Conflict. The directory is a drive only when all of it is durable.
func Format(fs vfsx.FS, dir string, id Identity) error {
	const op = "drive.format"
	state, _, err := Inspect(fs, dir)
	if err != nil {
		return err
	}
	if state == Formatted {
		return errs.New(errs.Conflict, op, dir, "is a drive already")
	}
	if state == ForeignFiles {
		return errs.New(errs.Conflict, op, dir, "is not empty: move its files away, or give another folder")
	}
	id.Format = FormatVersion
	if id.DriveID.IsZero() {
		return errs.New(errs.InvalidArgument, op, dir, "no drive id")
	}
	if err := mkdirs(fs, dir); err != nil {
		return errs.Wrap(errs.DriveFailed, op, dir, err)
	}
	return WriteIdentity(fs, dir, id)
}

// mkdirs makes the drive's folders, durably up to the first one that was there:
// a parent that a power cut takes away takes the drive with it.
func mkdirs(fs vfsx.FS, dir string) error {
	parents := []string{fs.PathDir(dir)}
	for p := parents[0]; p != fs.PathDir(p); p = fs.PathDir(p) {
		if _, err := fs.Stat(p); err == nil {
			break
		}
		parents = append(parents, fs.PathDir(p))
	}
	for _, sub := range []string{extentsName, indexName} {
		if err := fs.MkdirAll(fs.PathJoin(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for _, p := range parents {
		if err := vfsx.SyncDir(fs, p); err != nil {
			return err
		}
	}
	return nil
}

// WriteIdentity replaces drive.json durably. Not while the drive is open: a
// Drive whose identity file was replaced takes itself for removed.
func WriteIdentity(fs vfsx.FS, dir string, id Identity) error {
	const op = "drive.identity"
	b, err := json.MarshalIndent(identityJSON{id.Format, id.StoreID, id.DriveID.String(), id.Node, id.Zone, id.Path, id.Starts}, "", "  ")
	if err != nil {
		return errs.Wrap(errs.Other, op, dir, err)
	}
	name := fs.PathJoin(dir, identityName)
	if err := writeFile(fs, name+".tmp", append(b, '\n')); err != nil {
		return errs.Wrap(errs.DriveFailed, op, dir, err)
	}
	if err := fs.Rename(name+".tmp", name); err != nil {
		return errs.Wrap(errs.DriveFailed, op, dir, err)
	}
	return errs.Wrap(errs.DriveFailed, op, dir, vfsx.SyncDir(fs, dir))
}

func writeFile(fs vfsx.FS, name string, b []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadIdentity reads drive.json. NotFound says in its detail whether the folder
// or only the file is missing; Corrupt; InvalidArgument if a later release formatted the drive.
func ReadIdentity(fs vfsx.FS, dir string) (Identity, error) {
	const op = "drive.identity"
	f, err := fs.Open(fs.PathJoin(dir, identityName))
	if errors.Is(err, os.ErrNotExist) {
		detail := "not a drive: no " + identityName
		if _, err := fs.Stat(dir); err != nil {
			detail = "the folder is missing"
		}
		return Identity{}, errs.New(errs.NotFound, op, dir, detail)
	}
	if err != nil {
		return Identity{}, errs.Wrap(errs.DriveFailed, op, dir, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, identityBytesMax))
	if err != nil {
		return Identity{}, errs.Wrap(errs.DriveFailed, op, dir, err)
	}
	var j identityJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return Identity{}, errs.Wrap(errs.Corrupt, op, dir, err)
	}
	if j.Format > FormatVersion {
		return Identity{}, errs.Newf(errs.InvalidArgument, op, dir, "was formatted by a later release (format %d, this one knows %d)", j.Format, FormatVersion)
	}
	id, err := storage.ParseDriveID(j.DriveID)
	if err != nil || id.IsZero() {
		return Identity{}, errs.New(errs.Corrupt, op, dir, identityName+" names no drive id")
	}
	return Identity{j.Format, j.StoreID, id, j.Node, j.Zone, j.Path, j.Starts}, nil
}

// extentPath is where an extent lies.
func (d *Drive) extentPath(number uint32) string {
	return d.fs.PathJoin(d.dir, extentsName, extent.Name(number))
}

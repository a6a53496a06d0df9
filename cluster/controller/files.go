package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

const (
	lockName     = "cairn.lock"
	pidName      = "cairn.pid"
	registryName = "drives.json"
	intentName   = "bootstrap.json"

	fileBytesMax = 16 << 20 // of a JSON file that is read
	fileFormat   = 1        // of all JSON files; those of a later one are refused
)

// record is what is known about a drive without the metadata plane.
type record struct {
	ID     storage.DriveID    `json:"-"`
	IDText string             `json:"id"` // 32 hex digits
	Zone   cluster.Zone       `json:"zone"`
	Path   string             `json:"path"` // as recorded: see Config.slotName
	Label  string             `json:"label,omitempty"`
	State  cluster.DriveState `json:"state"`
	Starts uint64             `json:"starts"`          // the highest start counter seen
	Mount  bool               `json:"mount,omitempty"` // the folder was a mount point
	// Unrecorded: it was opened, and the system group may never have heard of it. Only its start counter counts.
	Unrecorded bool `json:"unrecorded,omitempty"`
}

// groupRecord is where a group's voters lie.
type groupRecord struct {
	ID     cluster.GroupID `json:"id"`
	Voters []string        `json:"voters"` // drive ids
}

// registry is drives.json.
type registry struct {
	Format  int           `json:"format"` // 1
	StoreID string        `json:"store_id"`
	Drives  []record      `json:"drives"`
	Groups  []groupRecord `json:"groups"`
}

// find is the record of a drive, or nil.
func (r *registry) find(id storage.DriveID) *record {
	for i := range r.Drives {
		if r.Drives[i].ID == id {
			return &r.Drives[i]
		}
	}
	return nil
}

// intentDrive and intentReplica are what bootstrap drew.
type intentDrive struct {
	ID    string       `json:"id"`
	Path  string       `json:"path"`
	Zone  cluster.Zone `json:"zone"`
	Label string       `json:"label,omitempty"`
}

type intentReplica struct {
	Group cluster.GroupID   `json:"group"`
	ID    cluster.ReplicaID `json:"id"`
	Drive string            `json:"drive"`
}

// intent is bootstrap.json.
type intent struct {
	Format    int             `json:"format"` // 1
	StoreID   string          `json:"store_id"`
	Node      cluster.NodeID  `json:"node,omitempty"`
	CreatedMS int64           `json:"created_ms"`
	Drives    []intentDrive   `json:"drives"`
	Replicas  []intentReplica `json:"replicas"`
	Formatted bool            `json:"formatted"` // all drives are; from here on an empty one has lost something
}

// readJSON reads a file into v and reports whether there is one. Corrupt if it cannot be understood, NotImplemented if a
// newer release wrote it.
func readJSON(fsys vfsx.FS, path string, v any) (bool, error) {
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileBytesMax))
	if err != nil {
		return false, err
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return true, errs.Wrap(errs.Corrupt, "read", path, err)
	}
	if head.Format > fileFormat {
		return true, errs.Newf(errs.NotImplemented, "read", path, "the file has format %d, this release knows up to %d: run the newer release", head.Format, fileFormat)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return true, errs.Wrap(errs.Corrupt, "read", path, err)
	}
	return true, nil
}

// writeJSON replaces a file durably: a crash leaves the old or the new one.
func writeJSON(fsys vfsx.FS, path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, path); err != nil {
		return err
	}
	return vfsx.SyncDir(fsys, filepath.Dir(path))
}

// removeFile removes a file durably; that it is gone already is fine.
func removeFile(fsys vfsx.FS, path string) error {
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return vfsx.SyncDir(fsys, filepath.Dir(path))
}

func readRegistry(fsys vfsx.FS, dir string) (*registry, error) {
	r := &registry{}
	ok, err := readJSON(fsys, filepath.Join(dir, registryName), r)
	if err != nil || !ok {
		return nil, err
	}
	for i := range r.Drives {
		d := &r.Drives[i]
		if d.ID, err = storage.ParseDriveID(d.IDText); err != nil {
			return nil, errs.Wrap(errs.Corrupt, "read", filepath.Join(dir, registryName), err)
		}
	}
	return r, nil
}

func readIntent(fsys vfsx.FS, dir string) (*intent, error) {
	in := &intent{}
	ok, err := readJSON(fsys, filepath.Join(dir, intentName), in)
	if err != nil || !ok {
		return nil, err
	}
	return in, nil
}

// mkdir makes a folder and its parents durably.
func mkdir(fsys vfsx.FS, dir string) error {
	var made []string // parents whose entries are new
	for p := dir; ; p = filepath.Dir(p) {
		if _, err := fsys.Stat(p); err == nil || p == filepath.Dir(p) {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		made = append(made, filepath.Dir(p))
	}
	if err := fsys.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, p := range made {
		if err := vfsx.SyncDir(fsys, p); err != nil {
			return err
		}
	}
	return nil
}

// probe finds out whether files can be made in dir. The name is one that a broken off
// drive.Format may leave, too, so that a crash here leaves nothing strange.
func probe(fsys vfsx.FS, dir string) error {
	name := filepath.Join(dir, "drive.json.tmp")
	f, err := fsys.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), fsys.Remove(name))
}

// isPermission reports whether an error is about rights or a read-only file system.
func isPermission(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

// lockDir takes a folder for this process and writes its process id beside the
// lock. It is Busy while another process, or another part of this one, holds it.
func lockDir(fsys vfsx.FS, dir string) (io.Closer, error) {
	lock, err := fsys.Lock(filepath.Join(dir, lockName))
	if err != nil {
		if held(err) {
			return nil, errs.Newf(errs.Busy, "start", dir, "%s uses it: stop that one first, or choose another folder", lockOwner(fsys, dir))
		}
		if isPermission(err) {
			return nil, errs.Newf(errs.AccessDenied, "start", dir, "no permission to write in it: check owner and mode, and the user that cairn runs as (%v)", err)
		}
		return nil, errs.Wrap(errs.DriveFailed, "lock", dir, err)
	}
	// For people only: not synced, and a failure to write it is no reason to stop.
	if f, err := fsys.Create(filepath.Join(dir, pidName), vfs.WriteCategoryUnspecified); err == nil {
		fmt.Fprintln(f, os.Getpid())
		f.Close()
	}
	return lock, nil
}

// held reports whether a lock was refused because somebody holds it. Record
// locks answer EAGAIN or EACCES without a path; a file that cannot be made answers with one.
func held(err error) bool {
	var errno syscall.Errno
	if errors.Is(err, syscall.EAGAIN) {
		return true
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return false
	}
	return errors.As(err, &errno) && errno == syscall.EACCES || strings.Contains(err.Error(), "lock held by current process")
}

func lockOwner(fsys vfsx.FS, dir string) string {
	f, err := fsys.Open(filepath.Join(dir, pidName))
	if err == nil {
		defer f.Close()
		data, _ := io.ReadAll(io.LimitReader(f, 32))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			return fmt.Sprintf("another cairn process (pid %d)", pid)
		}
	}
	return "another cairn process"
}

// isMount reports whether dir lies on another device than its parent.
func isMount(fsys vfsx.FS, dir string) bool {
	d, err := fsys.StatID(dir)
	if err != nil {
		return false
	}
	p, err := fsys.StatID(filepath.Dir(dir))
	return err == nil && d.Dev != p.Dev
}

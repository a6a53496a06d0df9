package status

import (
	"fmt"
	"io"
	"strings"
)

// ClassUsage is what is stored, and was, in one storage class. Sums are as of about now: what is written meanwhile may be counted or not.
type ClassUsage struct {
	Class       string `json:"class"`
	Objects     int64  `json:"objects"`  // current versions
	Versions    int64  `json:"versions"` // noncurrent ones
	Markers     int64  `json:"markers"`  // delete markers, all counted as STANDARD
	Bytes       int64  `json:"bytes"`    // of all versions, as users count them
	Uploads     int64  `json:"uploads"`  // multipart uploads in progress
	UploadBytes int64  `json:"upload_bytes"`
	DriveBytes  int64  `json:"drive_bytes"` // what both take on drives, estimated from the class's plan of now

	// What only rises.
	EarlyByteDays float64 `json:"early_byte_days"` // bytes that left the class before its minimum of days was over, times the days that lacked
	RestoredBytes uint64  `json:"restored_bytes"`  // of archived versions whose restore was begun
}

// BucketUsage is a bucket's usage, by class. Classes that never held anything are left out.
type BucketUsage struct {
	Bucket  string       `json:"bucket"`
	Deleted bool         `json:"deleted,omitempty"` // all buckets that are deleted, together, without a name
	Classes []ClassUsage `json:"classes"`
}

// UsageTotal sums up.
type UsageTotal struct {
	Buckets int64        `json:"buckets"`
	Day     string       `json:"day"` // how long a day of a minimum is
	Classes []ClassUsage `json:"classes"`
	// Live and dead bytes of shards that the drives of all nodes that answered have; absent where one bucket was asked about.
	Drives *DriveUse `json:"drives,omitempty"`
}

// DriveUse is what drives hold of shards, measured.
type DriveUse struct {
	Live   int64 `json:"live"`
	Dead   int64 `json:"dead"`   // removed, but not yet given back to the file system
	Silent int   `json:"silent"` // drives that are not counted, because nobody could be asked
}

// Add adds another usage of the same class.
func (c *ClassUsage) Add(o *ClassUsage) {
	c.Objects += o.Objects
	c.Versions += o.Versions
	c.Markers += o.Markers
	c.Bytes += o.Bytes
	c.Uploads += o.Uploads
	c.UploadBytes += o.UploadBytes
	c.DriveBytes += o.DriveBytes
	c.EarlyByteDays += o.EarlyByteDays
	c.RestoredBytes += o.RestoredBytes
}

// usageFormat has columns of fixed width, since lines are printed as they come.
const usageFormat = "%-32s %-19s %11s %11s %11s %19s %11s %15s %11s\n"

// UsageHeader writes the head of the table.
func UsageHeader(w io.Writer) {
	fmt.Fprintf(w, usageFormat, "BUCKET", "CLASS", "objects", "versions", "bytes", "uploads", "on drives", "early GB-days", "restored")
}

// Print writes a line for each class.
func (b *BucketUsage) Print(w io.Writer) {
	name := b.Bucket
	if b.Deleted {
		name = "(deleted buckets)"
	}
	printClasses(w, name, b.Classes)
}

// Print writes the sums and what the drives say.
func (t *UsageTotal) Print(w io.Writer) {
	fmt.Fprintln(w)
	printClasses(w, "TOTAL of "+count(int(t.Buckets), "bucket"), t.Classes)
	if d := t.Drives; d != nil {
		bytes := int64(0)
		for _, c := range t.Classes {
			bytes += c.Bytes + c.UploadBytes
		}
		fmt.Fprintf(w, "\nmeasured on drives: %s of shards", Bytes(d.Live))
		if bytes > 0 {
			fmt.Fprintf(w, ", %.2f bytes for one", float64(d.Live)/float64(bytes))
		}
		fmt.Fprintf(w, ", and %s not given back yet", Bytes(d.Dead))
		if d.Silent > 0 {
			fmt.Fprintf(w, "; %s could not be asked", count(d.Silent, "drive"))
		}
		fmt.Fprintln(w)
	}
}

func printClasses(w io.Writer, name string, classes []ClassUsage) {
	if len(classes) == 0 {
		fmt.Fprintf(w, "%-32s (nothing)\n", name)
	}
	for _, c := range classes {
		versions, uploads := fmt.Sprint(c.Versions), "-"
		if c.Markers != 0 {
			versions += fmt.Sprintf("+%dm", c.Markers)
		}
		if c.Uploads != 0 || c.UploadBytes != 0 {
			uploads = fmt.Sprintf("%d (%s)", c.Uploads, Bytes(c.UploadBytes))
		}
		line := fmt.Sprintf(usageFormat, name, c.Class, fmt.Sprint(c.Objects), versions, Bytes(c.Bytes), uploads, Bytes(c.DriveBytes),
			gbDays(c.EarlyByteDays), Bytes(int64(c.RestoredBytes)))
		io.WriteString(w, strings.TrimRight(line, " \n")+"\n")
		name = ""
	}
}

// gbDays writes byte-days as bills do, a GB being 2^30 bytes.
func gbDays(byteDays float64) string {
	if byteDays == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", byteDays/(1<<30))
}

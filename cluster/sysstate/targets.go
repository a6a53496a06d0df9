package sysstate

import (
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage/errs"
)

// Bounds of targets and of what buckets say of them.
const (
	targetsMax        = 1000
	targetNameMax     = 80       // bytes
	targetBytesMax    = 64 << 10 // encoded, of its settings and secrets
	notificationMax   = 1 << 20  // encoded
	notificationRules = notification.RulesMax
)

// putTarget puts a target. Who acts by targets reads them again from time to time: nothing waits until all know it.
func (t *tx) putTarget(op *metapb.PutTargetOp) error {
	want := op.GetTarget()
	if detail := checkTarget(want); detail != "" {
		return refuse(errs.InvalidArgument, "%s", detail)
	}
	cur := &metapb.SysTarget{}
	there, err := get(t.b, targetKey(want.Name), cur)
	switch {
	case err != nil:
		return err
	case there && !op.Replace:
		return refuse(errs.Conflict, "there is a target of this name")
	case !there:
		if n, err := t.countTargets(); err != nil {
			return err
		} else if n >= targetsMax {
			return refuse(errs.EntityTooLarge, "a store has at most %d targets", targetsMax)
		}
	}
	row := want.CloneVT()
	row.Format, row.CreatedMs, row.Generation = 1, t.now, 1
	if there {
		row.CreatedMs, row.Generation = cur.CreatedMs, cur.Generation+1
	}
	return put(t.b, targetKey(row.Name), row)
}

// checkTarget says what is wrong with a target; empty if nothing. What its kind wants to be told is not looked at.
func checkTarget(g *metapb.SysTarget) string {
	size := 0
	for _, kv := range g.GetSettings() {
		size += kv.SizeVT()
	}
	for _, kv := range g.GetSecrets() {
		size += kv.SizeVT()
	}
	switch {
	case !targetName(g.GetName()):
		return "the name of a target has 1 to 80 letters, digits, hyphens, underscores and periods, and is not . or .."
	case g.Kind == "" || len(g.Kind) > nameBytesMax:
		return "a target needs a kind"
	case size > targetBytesMax:
		return "the settings of a target have at most 64 KiB"
	case metapb.WhenFull_name[int32(g.WhenFull)] == "":
		return "it is not known what is to happen when too many events wait"
	case g.AgeMaxMs < 0:
		return "the age of events is not negative"
	}
	return ""
}

// targetName reports whether a target can have that name. URLs with "." or ".." would lead elsewhere.
func targetName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= targetNameMax && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.", r))
	})
}

// countTargets reads the names of all targets, which are few.
func (t *tx) countTargets() (n int, err error) {
	start, end := kindSpan(kindTarget)
	err = scan(t.b, start, end, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// removeTarget removes a target. Buckets that name it all the same go on to do so: a target of that name that comes later gets their events.
func (t *tx) removeTarget(op *metapb.RemoveTargetOp) error {
	if there, err := has(t.b, targetKey(op.GetName())); err != nil {
		return err
	} else if !there {
		return refuse(errs.NotFound, "there is no target of this name")
	}
	if !op.Force {
		bk, err := t.namedBy(op.Name)
		if err != nil {
			return err
		}
		if bk != nil {
			return refuse(errs.Conflict, "the notification configuration of bucket %s names the target", bk.Name)
		}
	}
	return t.b.Delete(targetKey(op.Name), nil)
}

// namedBy is a bucket whose notification configuration names a target; nil if there is none.
func (t *tx) namedBy(target string) (bk *metapb.SysBucket, err error) {
	start := namedPrefix(target)
	err = scan(t.b, start, prefixEnd(start), func(k, _ []byte) (bool, error) {
		var err error
		bk, err = indexed(t.b, k, k[len(start):])
		return false, err
	})
	return bk, err
}

// checkNotification refuses a configuration that is too long, or that names a target that does not exist. What else it says was checked by who puts it.
func (t *tx) checkNotification(cfg *metapb.NotificationConfig) error {
	if cfg.SizeVT() > notificationMax || len(cfg.GetRules()) > notificationRules {
		return refuse(errs.InvalidArgument, "a notification configuration has at most %d rules and %d bytes", notificationRules, notificationMax)
	}
	for _, rule := range cfg.GetRules() {
		arn, ok := notification.ParseARN(rule.GetArn())
		if !ok {
			return refuse(errs.InvalidArgument, "%q is not the ARN of a destination", rule.GetArn())
		}
		if !targetName(arn.Target()) {
			return refuse(errs.NotFound, "%s", rule.Arn)
		}
		if there, err := has(t.b, targetKey(arn.Target())); err != nil {
			return err
		} else if !there {
			return refuse(errs.NotFound, "%s", rule.Arn) // nothing else: it goes into S3's answer
		}
	}
	return nil
}

// setNotification replaces the bucket's configuration; nil: there is none.
func (t *tx) setNotification(bk *metapb.SysBucket, cfg *metapb.NotificationConfig) error {
	if err := t.unname(bk); err != nil {
		return err
	}
	bk.Notification = cfg
	for _, rule := range cfg.GetRules() {
		if err := t.b.Set(namedKey(targetOf(rule), bk.Id), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// unname forgets which targets the bucket names.
func (t *tx) unname(bk *metapb.SysBucket) error {
	for _, rule := range bk.Notification.GetRules() {
		if err := t.b.Delete(namedKey(targetOf(rule), bk.Id), nil); err != nil {
			return err
		}
	}
	return nil
}

// targetOf is the name of the target that a rule of a bucket's configuration names.
func targetOf(rule *metapb.NotificationRule) string {
	arn, _ := notification.ParseARN(rule.GetArn()) // it was checked
	return arn.Target()
}

// Target is the target of a name. NotFound if there is none.
func Target(r pebble.Reader, name string) (*metapb.SysTarget, error) {
	g := &metapb.SysTarget{}
	ok, err := get(r, targetKey(name), g)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "target", name, "there is no target of this name")
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Targets are all targets, in order of their names: at most 1000, of 64 KiB at most each.
func Targets(r pebble.Reader) ([]*metapb.SysTarget, error) {
	all, _, err := TargetsPage(r, "", targetsMax, targetsMax*2*targetBytesMax)
	return all, err
}

// TargetsPage are up to max targets whose names come after after, in order of their names, and whether there are more. They have at most
// bytesMax bytes unless it is one.
func TargetsPage(r pebble.Reader, after string, max, bytesMax int) (page []*metapb.SysTarget, more bool, err error) {
	start, end := kindSpan(kindTarget)
	if after != "" {
		start = append(targetKey(after), 0)
	}
	size := 0
	err = scan(r, start, end, func(k, v []byte) (bool, error) {
		if more = len(page) >= max || len(page) > 0 && size+len(v) > bytesMax; more {
			return false, nil
		}
		g := &metapb.SysTarget{}
		if err := g.UnmarshalVT(v); err != nil {
			return false, corrupt(k, err)
		}
		page, size = append(page, g), size+len(v)
		return true, nil
	})
	if err != nil {
		return nil, false, err
	}
	return page, more, nil
}

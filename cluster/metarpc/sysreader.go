package metarpc

import (
	"context"

	"cairn/cluster"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// sysReader asks the system group's leader.
type sysReader struct {
	ctx context.Context // of the one use that it is made for
	r   *Router
}

var _ sysstate.Reader = (*sysReader)(nil)

func (v *sysReader) ask(req *nodepb.SysQueryRequest) (ans *nodepb.SysQueryAnswer, err error) {
	err = v.r.atLeader(v.ctx, cluster.SystemGroup, 1, func(ctx context.Context, m nodepb.MetaClient) (err error) {
		ans, err = m.SysQuery(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ans, nil
}

func (v *sysReader) Store() (*metapb.SysStore, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_Store{Store: &nodepb.InfoQuery{}}})
	if err != nil {
		return nil, err
	}
	return orEmpty(ans.Store), nil
}

func (v *sysReader) TimeMS() (int64, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_Time{Time: &nodepb.InfoQuery{}}})
	if err != nil {
		return 0, err
	}
	return ans.Value, nil
}

func (v *sysReader) DriveStarts(id storage.DriveID) (uint64, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_DriveStarts{DriveStarts: id[:]}})
	if err != nil {
		return 0, err
	}
	return uint64(ans.Value), nil
}

func (v *sysReader) BucketByName(name string) (*metapb.SysBucket, error) {
	return v.bucket(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_BucketByName{BucketByName: name}})
}

func (v *sysReader) BucketByID(id storage.BucketID) (*metapb.SysBucket, error) {
	return v.bucket(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_BucketById{BucketById: uint64(id)}})
}

func (v *sysReader) bucket(req *nodepb.SysQueryRequest) (*metapb.SysBucket, error) {
	ans, err := v.ask(req)
	if err != nil {
		return nil, err
	}
	if len(ans.Buckets) != 1 {
		return nil, errs.New(errs.Corrupt, "metarpc.bucket", "", "the leader's answer does not fit the question")
	}
	return ans.Buckets[0], nil
}

func (v *sysReader) ListBuckets(owner, prefix, after string, max int) ([]*metapb.SysBucket, bool, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_ListBuckets{ListBuckets: &nodepb.SysListQuery{
		Owner: owner, Prefix: prefix, After: after, Limit: limitOf(max),
	}}})
	if err != nil {
		return nil, false, err
	}
	return ans.Buckets, ans.More, nil
}

func (v *sysReader) PendingBuckets(after storage.BucketID, max int) ([]*metapb.SysBucket, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_PendingBuckets{PendingBuckets: &nodepb.SysListQuery{
		AfterId: uint64(after), Limit: limitOf(max),
	}}})
	if err != nil {
		return nil, err
	}
	return ans.Buckets, nil
}

func (v *sysReader) CountBuckets() (int64, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_CountBuckets{CountBuckets: &nodepb.InfoQuery{}}})
	if err != nil {
		return 0, err
	}
	return ans.Value, nil
}

// Targets asks page by page, as the leader's answers have a bound: a target that comes or goes meanwhile may be missing or not. Every
// one that was there before the call and stays is in the answer.
func (v *sysReader) Targets() (all []*metapb.SysTarget, err error) {
	after := ""
	for {
		ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_Targets{Targets: &nodepb.SysListQuery{After: after, Limit: answerRowsMax}}})
		if err != nil {
			return nil, err
		}
		all = append(all, ans.Targets...)
		if !ans.More {
			return all, nil
		}
		next := ""
		if n := len(ans.Targets); n > 0 {
			next = ans.Targets[n-1].Name
		}
		if next <= after {
			return nil, errs.New(errs.Corrupt, "metarpc.targets", "", "the leader's answer does not fit the question")
		}
		after = next
	}
}

func (v *sysReader) Target(name string) (*metapb.SysTarget, error) {
	ans, err := v.ask(&nodepb.SysQueryRequest{Of: &nodepb.SysQueryRequest_Target{Target: name}})
	if err != nil {
		return nil, err
	}
	if len(ans.Targets) != 1 {
		return nil, errs.New(errs.Corrupt, "metarpc.target", name, "the leader's answer does not fit the question")
	}
	return ans.Targets[0], nil
}

package linear

import (
	"bytes"
	"context"
	"fmt"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// Gateway is a Store inside the process: what S3's operations mean, without HTTP.
type Gateway struct {
	Objects *objects.Store
	Bucket  string
}

// Put stores an object.
func (g Gateway) Put(ctx context.Context, key string, p []byte, cond Condition) error {
	in := &objects.PutInput{Bucket: g.Bucket, Key: storage.Key(key), Body: harness.NewBody(p), Attributes: &metapb.Attributes{}}
	if cond.New {
		in.Conditions.IfNoneMatch = []string{"*"}
	}
	if cond.Match != "" {
		in.Conditions.IfMatch = []string{cond.Match}
	}
	_, err := g.Objects.PutObject(ctx, harness.Account, in)
	return definite(err, ErrRefused)
}

// Delete deletes an object.
func (g Gateway) Delete(ctx context.Context, key string) error {
	_, err := g.Objects.DeleteObject(ctx, harness.Account, g.Bucket, objects.DeleteItem{Key: storage.Key(key)})
	return definite(err, ErrNotFound)
}

// definite is what an error means; notFound is what no such key does.
func definite(err, notFound error) error {
	switch {
	case errs.Is(err, errs.PreconditionFailed):
		return fmt.Errorf("%w: %v", ErrRefused, err)
	case errs.Is(err, errs.NoSuchKey), errs.Is(err, errs.IsDeleteMarker):
		return fmt.Errorf("%w: %v", notFound, err)
	}
	return err
}

// Get reads an object whole.
func (g Gateway) Get(ctx context.Context, key string) ([]byte, error) {
	o, err := g.Objects.GetObject(ctx, harness.Account, &objects.GetInput{Bucket: g.Bucket, Key: storage.Key(key)})
	if err != nil {
		return nil, definite(err, ErrNotFound)
	}
	defer o.Close()
	var buf bytes.Buffer
	if err := o.Send(&buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// List lists all keys, in pages of three so that pages are put together too.
func (g Gateway) List(ctx context.Context) (map[string]string, error) {
	etags := map[string]string{}
	for after := ""; ; {
		page, err := g.Objects.ListObjects(ctx, harness.Account, &objects.ListInput{Bucket: g.Bucket, After: after, Max: 3})
		if err != nil {
			return nil, err
		}
		for _, o := range page.Objects {
			etags[string(o.Key)] = o.ETag
		}
		if !page.Truncated {
			return etags, nil
		}
		after = page.Next
	}
}

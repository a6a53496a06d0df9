// Package s3store makes S3 endpoints Stores of package linear: what a client sees
// from outside, through the AWS SDK.
package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"cairn/test/linear"
)

// Store is a bucket at one endpoint.
type Store struct {
	client *s3.Client
	bucket string
}

var _ linear.Store = (*Store)(nil)

// New speaks to an endpoint ("http://127.0.0.1:9000") without repeating requests
// by itself: a repeat of a conditional put that happened would be refused by its own doing.
func New(endpoint, region, accessKey, secretKey, bucket string) *Store {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, ResponseHeaderTimeout: time.Minute}
	return &Store{bucket: bucket, client: s3.NewFromConfig(aws.Config{
		Region: region, Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		HTTPClient: &http.Client{Transport: transport},
	}, func(o *s3.Options) {
		o.BaseEndpoint, o.UsePathStyle, o.Retryer = aws.String(endpoint), true, aws.NopRetryer{}
	})}
}

// CreateBucket makes the bucket; one that is there and one's own is taken.
func (s *Store) CreateBucket(ctx context.Context) error {
	_, err := s.client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &s.bucket})
	if status(err) == http.StatusConflict {
		return nil
	}
	return err
}

func status(err error) int {
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}

func definite(err, notFound error) error {
	switch status(err) {
	case http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", linear.ErrRefused, err)
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", notFound, err)
	}
	return err
}

// Put stores an object.
func (s *Store) Put(ctx context.Context, key string, body []byte, cond linear.Condition) error {
	in := &s3.PutObjectInput{Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(body)}
	if cond.New {
		in.IfNoneMatch = aws.String("*")
	}
	if cond.Match != "" {
		in.IfMatch = aws.String(`"` + cond.Match + `"`)
	}
	_, err := s.client.PutObject(ctx, in)
	return definite(err, linear.ErrRefused)
}

// Get reads an object whole.
func (s *Store) Get(ctx context.Context, key string) ([]byte, error) {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		return nil, definite(err, linear.ErrNotFound)
	}
	defer out.Body.Close()
	return io.ReadAll(out.Body)
}

// Delete deletes an object.
func (s *Store) Delete(ctx context.Context, key string) error {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: &key})
	return definite(err, linear.ErrNotFound)
}

// List lists all keys.
func (s *Store) List(ctx context.Context) (map[string]string, error) {
	etags := map[string]string{}
	for pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			etags[aws.ToString(o.Key)] = strings.Trim(aws.ToString(o.ETag), `"`)
		}
	}
	return etags, nil
}

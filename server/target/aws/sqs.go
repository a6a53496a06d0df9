package aws

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"cairn/server/target"
)

const batchMax = 10 // messages that SQS takes at once

type queue struct {
	client *sqs.Client
	url    string
	fifo   bool
}

func newQueue(c Config, client *http.Client, keys awssdk.CredentialsProvider, endpoint *string) *queue {
	return &queue{url: c.Resource, fifo: c.fifo(), client: sqs.New(sqs.Options{
		Region: c.Region, Credentials: keys, HTTPClient: client, BaseEndpoint: endpoint, Retryer: awssdk.NopRetryer{},
	})}
}

// wave answers how many messages go in one request: those that may be under way together and fit.
func wave(batch []target.Message) int {
	n := target.Window(batch, batchMax)
	size := 0
	for i, m := range batch[:n] {
		if size += len(m.Body); size > smallMax && i > 0 {
			return i
		}
	}
	return n
}

func (q *queue) send(ctx context.Context, batch []target.Message) (acked int, err error) {
	batch = batch[:wave(batch)]
	entries := make([]types.SendMessageBatchRequestEntry, len(batch))
	for i, m := range batch {
		entries[i] = types.SendMessageBatchRequestEntry{Id: awssdk.String(strconv.Itoa(i)), MessageBody: awssdk.String(string(m.Body))}
		if q.fifo {
			entries[i].MessageGroupId, entries[i].MessageDeduplicationId = awssdk.String(group(m)), awssdk.String(deduplication(m))
		}
	}
	out, err := q.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: entries})
	if err != nil {
		return 0, err
	}
	taken := make(map[string]bool, len(out.Successful))
	for _, e := range out.Successful {
		taken[text(e.Id)] = true
	}
	for acked < len(batch) && taken[strconv.Itoa(acked)] {
		acked++
	}
	if acked == len(batch) {
		return acked, nil
	}
	for _, e := range out.Failed {
		if text(e.Id) == strconv.Itoa(acked) {
			return acked, &smithy.GenericAPIError{Code: text(e.Code), Message: text(e.Message)}
		}
	}
	return acked, errors.New("the answer says nothing about a message of the batch")
}

func (q *queue) check(ctx context.Context) error {
	_, err := q.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{
		QueueUrl: &q.url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameQueueArn},
	})
	return err
}

package aws

import (
	"context"
	"errors"
	"net/http"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"

	"cairn/server/target"
)

// subject is what S3 gives its messages to topics, and what subscribers by mail see.
const subject = "Amazon S3 Notification"

type topic struct {
	client *sns.Client
	arn    string
	fifo   bool
}

func newTopic(c Config, client *http.Client, keys awssdk.CredentialsProvider, endpoint *string) *topic {
	return &topic{arn: c.Resource, fifo: c.fifo(), client: sns.New(sns.Options{
		Region: c.Region, Credentials: keys, HTTPClient: client, BaseEndpoint: endpoint, Retryer: awssdk.NopRetryer{},
	})}
}

func (t *topic) send(ctx context.Context, batch []target.Message) (acked int, err error) {
	m := batch[0]
	in := &sns.PublishInput{TopicArn: &t.arn, Subject: awssdk.String(subject), Message: awssdk.String(string(m.Body))}
	if t.fifo {
		in.MessageGroupId, in.MessageDeduplicationId = awssdk.String(group(m)), awssdk.String(deduplication(m))
	}
	out, err := t.client.Publish(ctx, in)
	if err != nil {
		return 0, err
	}
	if text(out.MessageId) == "" {
		return 0, errors.New("the answer gives no id of the message")
	}
	return 1, nil
}

func (t *topic) check(ctx context.Context) error {
	_, err := t.client.GetTopicAttributes(ctx, &sns.GetTopicAttributesInput{TopicArn: &t.arn})
	return err
}

package aws

import (
	"context"
	"fmt"
	"net/http"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"cairn/server/target"
)

type function struct {
	client *lambda.Client
	name   string
}

func newFunction(c Config, client *http.Client, keys awssdk.CredentialsProvider, endpoint *string) *function {
	return &function{name: c.Resource, client: lambda.New(lambda.Options{
		Region: c.Region, Credentials: keys, HTTPClient: client, BaseEndpoint: endpoint, Retryer: awssdk.NopRetryer{},
	})}
}

func (f *function) send(ctx context.Context, batch []target.Message) (acked int, err error) {
	if err := f.invoke(ctx, types.InvocationTypeEvent, batch[0].Body, http.StatusAccepted); err != nil {
		return 0, err
	}
	return 1, nil
}

// check asks whether we might invoke the function; it is not invoked.
func (f *function) check(ctx context.Context) error {
	return f.invoke(ctx, types.InvocationTypeDryRun, []byte("{}"), http.StatusNoContent)
}

func (f *function) invoke(ctx context.Context, how types.InvocationType, payload []byte, want int32) error {
	out, err := f.client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &f.name, InvocationType: how, Payload: payload})
	if err != nil {
		return err
	}
	if out.StatusCode != want {
		return fmt.Errorf("the answer has status %d and not %d", out.StatusCode, want)
	}
	return nil
}

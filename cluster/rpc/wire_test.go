package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// frame is a Payload: one byte and raw bytes.
type frame struct {
	tag  byte
	data []byte
	refs mem.BufferSlice
}

func (f *frame) MarshalFrame() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer([]byte{f.tag}), mem.SliceBuffer(f.data)}, nil
}

func (f *frame) UnmarshalFrame(b mem.BufferSlice) error {
	if b.Len() == 0 {
		return errors.New("empty frame")
	}
	b.Ref()
	f.refs = b
	all := b.Materialize()
	f.tag, f.data = all[0], all[1:]
	return nil
}

// echo is a service written by hand: a unary call and a stream of one method each.
type echo struct {
	unary  func(context.Context, *nodepb.Error) (*nodepb.Error, error)
	stream func(grpc.ServerStream) error
}

func (e *echo) register(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo",
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
			in := new(nodepb.Error)
			if err := dec(in); err != nil {
				return nil, err
			}
			h := func(ctx context.Context, req any) (any, error) { return e.unary(ctx, req.(*nodepb.Error)) }
			if ic == nil {
				return h(ctx, in)
			}
			return ic(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Echo/Unary"}, h)
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return e.stream(s) }}},
	}, nil)
}

func call(ctx context.Context, cc grpc.ClientConnInterface, in *nodepb.Error) (*nodepb.Error, error) {
	out := new(nodepb.Error)
	return out, cc.Invoke(ctx, "/test.Echo/Unary", in, out)
}

func stream(ctx context.Context, cc grpc.ClientConnInterface) (grpc.ClientStream, error) {
	return cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
}

func overBuffer(t *testing.T, e *echo) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	s := grpc.NewServer(ServerOptions()...)
	e.register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(lis) }()
	opts := append(DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	cc, err := grpc.NewClient("passthrough:///x", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close(); s.Stop(); <-done })
	return cc
}

func TestErrorsKeepTheirKind(t *testing.T) {
	cause := errors.New("the cause")
	for _, c := range []struct {
		name string
		err  error
		kind errs.Kind
		text string
	}{
		{"plain", errs.New(errs.PreconditionFailed, "range.put", "b/k", "etag differs"), errs.PreconditionFailed, "range.put: b/k: etag differs"},
		{"cause", errs.Wrap(errs.DriveFailed, "drive.append", "d1", cause), errs.DriveFailed, "drive.append: d1: the cause"},
		{"both", &errs.Error{Kind: errs.Busy, Op: "o", Subject: "s", Detail: "d", Err: cause}, errs.Busy, "o: s: d: the cause"},
		{"words around", fmt.Errorf("while trying: %w", errs.New(errs.NotLeader, "raft", "g2", "g2-abc leads")), errs.NotLeader, "while trying: raft: g2: g2-abc leads"},
		{"unavailable", errs.New(errs.Unavailable, "raft", "g2", "no quorum"), errs.Unavailable, "no quorum"},
		{"unknown kind", errs.New(errs.Kind(999), "o", "s", "d"), errs.Kind(999), "o: s: d"},
		{"no kind", cause, errs.Other, "the cause"},
		{"not UTF-8", errs.New(errs.NoSuchKey, "get", "a\xff", "gone"), errs.NoSuchKey, "a\uFFFD"},
		{"long", errs.New(errs.NoSuchKey, "get", strings.Repeat("x", 1<<20), "gone"), errs.NoSuchKey, "xxx"},
		{"context kept by its wrapper", errs.Wrap(errs.OutcomeUnknown, "o", "s", context.DeadlineExceeded), errs.OutcomeUnknown, "deadline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &echo{
				unary:  func(context.Context, *nodepb.Error) (*nodepb.Error, error) { return nil, c.err },
				stream: func(grpc.ServerStream) error { return c.err },
			}
			cc := overBuffer(t, e)
			check := func(err error) {
				t.Helper()
				if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || IsTransport(err) || NotSent(err) {
					t.Errorf("got %v (%v), want %v with %q", err, errs.KindOf(err), c.kind, c.text)
				}
			}
			_, err := call(t.Context(), cc, &nodepb.Error{})
			check(err)
			s, err := stream(t.Context(), cc)
			if err != nil {
				t.Fatal(err)
			}
			check(s.RecvMsg(new(nodepb.Error)))
		})
	}
}

func TestErrorsWithoutAnAnswer(t *testing.T) {
	e := &echo{unary: func(ctx context.Context, in *nodepb.Error) (*nodepb.Error, error) {
		switch in.Op {
		case "late":
			return nil, context.DeadlineExceeded
		case "wait":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return &nodepb.Error{Detail: strings.Repeat("x", MessageBytesMax)}, nil
	}}
	cc := overBuffer(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := call(ctx, cc, &nodepb.Error{Op: "wait"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := call(ctx, cc, &nodepb.Error{Op: "wait"}); !errors.Is(err, context.DeadlineExceeded) && !errs.Is(err, errs.Timeout) {
		t.Errorf("deadline: %v", err)
	}
	if _, err := call(t.Context(), cc, &nodepb.Error{Op: "late"}); !errs.Is(err, errs.Timeout) || !IsTransport(err) {
		t.Errorf("deadline of the peer: %v", err)
	}
	if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Other) {
		t.Errorf("too large: %v", err)
	}
	if err := cc.Invoke(t.Context(), "/test.Echo/Nothing", &nodepb.Error{}, &nodepb.Error{}); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "same release") {
		t.Errorf("unknown method: %v", err)
	}
}

func TestPayloadIsNotCopiedByTheCodec(t *testing.T) {
	f := &frame{tag: 7, data: []byte("hello")}
	b, err := Codec{}.Marshal(f)
	if err != nil || &b[1].ReadOnlyData()[0] != &f.data[0] {
		t.Fatalf("%v %v", b, err)
	}
	e := &echo{stream: func(s grpc.ServerStream) error {
		for {
			f := new(frame)
			if err := s.RecvMsg(f); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			f.tag++
			err := s.SendMsg(f)
			f.refs.Free()
			if err != nil {
				return err
			}
		}
	}}
	s, err := stream(t.Context(), overBuffer(t, e))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 1000, 1 << 20, 10 << 20} {
		data := bytes.Repeat([]byte{byte(n >> 8), 1}, n/2+1)
		if err := s.SendMsg(&frame{tag: 1, data: data}); err != nil {
			t.Fatal(err)
		}
		got := new(frame)
		if err := s.RecvMsg(got); err != nil || got.tag != 2 || !bytes.Equal(got.data, data) {
			t.Fatalf("%d bytes: %v, tag %d, %d bytes", n, err, got.tag, len(got.data))
		}
		got.refs.Free()
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(frame)); err != io.EOF {
		t.Fatal(err)
	}
}

func TestCodecTakesAnyMessage(t *testing.T) {
	for _, n := range []int{0, 10, 5000, 1 << 20} {
		in := &nodepb.Error{Kind: 3, Detail: strings.Repeat("d", n)}
		b, err := Codec{}.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out := &nodepb.Error{Op: "from before"}
		if err := (Codec{}).Unmarshal(b, out); err != nil || out.Op != "" || out.Kind != 3 || out.Detail != in.Detail {
			t.Fatalf("%d: %v %v", n, err, out.Op)
		}
		b.Free()
	}
	b, err := Codec{}.Marshal(wrapperspb.String("x"))
	if err != nil {
		t.Fatal(err)
	}
	var out wrapperspb.StringValue
	if err := (Codec{}).Unmarshal(b, &out); err != nil || out.Value != "x" {
		t.Fatal(err)
	}
	if _, err := (Codec{}).Marshal(3); err == nil {
		t.Fatal("encoded an int")
	}
	if err := (Codec{}).Unmarshal(nil, 3); err == nil {
		t.Fatal("decoded an int")
	}
}

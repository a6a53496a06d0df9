package rpc

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// errorTextBytesMax bounds each text of an error on the wire.
const errorTextBytesMax = 4 << 10

// transportError is the cause of an error that no handler of the peer gave.
type transportError struct {
	text string
	sent bool // the request may have reached the peer
}

func (e *transportError) Error() string { return e.text }

// IsTransport reports that err is not an answer of the peer: the connection failed
// or could not be made, and the call may or may not have been carried out.
func IsTransport(err error) bool {
	var t *transportError
	return errors.As(err, &t)
}

// NotSent reports that err is a transport failure before anything was sent: the
// call was certainly not carried out.
func NotSent(err error) bool {
	var t *transportError
	return errors.As(err, &t) && !t.sent
}

// ToStatus is what a handler's error looks like on the wire. nil gives nil; a
// status made by grpc itself passes through.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, "the deadline passed at the peer")
		case errors.Is(err, context.Canceled):
			return status.Error(codes.Canceled, "the call was cancelled at the peer")
		}
		if _, ok := status.FromError(err); ok {
			return err
		}
		e = &errs.Error{Kind: errs.Other, Detail: err.Error()}
	}
	detail := text(e)
	if error(e) != err {
		detail = err.Error() // somebody put words around it
	}
	s := status.New(codeOf(e.Kind), e.Kind.String())
	with, derr := s.WithDetails(&nodepb.Error{Kind: uint32(e.Kind), Op: cut(e.Op), Subject: cut(e.Subject), Detail: cut(detail)})
	if derr != nil {
		return s.Err()
	}
	return with.Err()
}

// FromStatus turns the error of a call of method into one of package errs: the
// peer's own if it gave one; the context's if ctx ended; else Unavailable or Timeout
// (see IsTransport). nil and io.EOF stay as they are.
func FromStatus(ctx context.Context, method string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		if errs.KindOf(err) != errs.Other {
			return err
		}
		s = status.New(codes.Unknown, err.Error())
	}
	for _, d := range s.Details() {
		if e, ok := d.(*nodepb.Error); ok {
			return &errs.Error{Kind: errs.Kind(e.Kind), Op: e.Op, Subject: e.Subject, Detail: e.Detail}
		}
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if d, ok := ctx.Deadline(); ok && s.Code() == codes.DeadlineExceeded && !time.Now().Before(d) {
		return context.DeadlineExceeded // our own timer is only late
	}
	cause := &transportError{text: s.Message(), sent: true}
	kind, detail := errs.Unavailable, ""
	switch s.Code() {
	case codes.DeadlineExceeded:
		kind = errs.Timeout
	case codes.Unimplemented:
		detail = "the peer does not know this call: bring all nodes to the same release"
	case codes.PermissionDenied, codes.Unauthenticated:
		kind = errs.AccessDenied
	case codes.ResourceExhausted:
		kind = errs.Other // a message over the limit: repeating does not help
	}
	return &errs.Error{Kind: kind, Op: "rpc", Subject: method, Detail: detail, Err: cause}
}

// cut makes s fit, and valid UTF-8: keys need not be, strings of protobuf must.
func cut(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), errorTextBytesMax)], "\uFFFD")
}

// codeOf is for people and tools that look at the wire; cairn itself goes by the detail.
func codeOf(k errs.Kind) codes.Code {
	switch k {
	case errs.Unavailable, errs.NotLeader, errs.Closed, errs.DriveFailed, errs.OutcomeUnknown:
		return codes.Unavailable
	case errs.Busy, errs.DriveFull:
		return codes.ResourceExhausted
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.AccessDenied, errs.Foreign:
		return codes.PermissionDenied
	case errs.NotFound, errs.NoSuchBucket, errs.NoSuchKey, errs.NoSuchUpload, errs.NoSuchVersion, errs.Gone:
		return codes.NotFound
	case errs.NotImplemented:
		return codes.Unimplemented
	case errs.InvalidArgument, errs.InvalidRequest:
		return codes.InvalidArgument
	case errs.Corrupt:
		return codes.DataLoss
	case errs.Other:
		return codes.Internal
	}
	return codes.FailedPrecondition
}

func serverUnaryErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	resp, err := h(ctx, req)
	return resp, ToStatus(err)
}

func serverStreamErrors(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return ToStatus(h(srv, ss))
}

func clientUnaryErrors(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromStatus(ctx, method, invoke(ctx, method, req, reply, cc, opts...))
}

func clientStreamErrors(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(ctx, method, err)
	}
	return &errorStream{ClientStream: s, ctx: ctx, method: method}, nil
}

// errorStream gives the errors of a stream their kinds.
type errorStream struct {
	grpc.ClientStream
	ctx    context.Context // the caller's; the stream's own ends with the stream
	method string
}

func (s *errorStream) SendMsg(m any) error {
	return FromStatus(s.ctx, s.method, s.ClientStream.SendMsg(m))
}

func (s *errorStream) RecvMsg(m any) error {
	return FromStatus(s.ctx, s.method, s.ClientStream.RecvMsg(m))
}

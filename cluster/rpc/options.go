package rpc

import "google.golang.org/grpc"

// MessageBytesMax bounds one message in either direction.
const MessageBytesMax = 16 << 20

// ServerOptions are the codec, the limits and the translation of errors, without
// which no server understands a peer. Server uses them; tests over other listeners may too.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{}),
		grpc.MaxRecvMsgSize(MessageBytesMax),
		grpc.MaxSendMsgSize(MessageBytesMax),
		grpc.SharedWriteBuffer(true),
		grpc.ChainUnaryInterceptor(serverUnaryErrors),
		grpc.ChainStreamInterceptor(serverStreamErrors),
	}
}

// DialOptions are ServerOptions for the calling side.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec{}),
			grpc.MaxCallRecvMsgSize(MessageBytesMax),
			grpc.MaxCallSendMsgSize(MessageBytesMax),
		),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(clientUnaryErrors),
		grpc.WithChainStreamInterceptor(clientStreamErrors),
	}
}

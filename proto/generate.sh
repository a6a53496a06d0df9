#!/bin/sh
# Regenerates the Go code of all messages: metapb is what is persisted, nodepb
# what nodes say to each other. Needs protoc, protoc-gen-go, protoc-gen-go-vtproto
# and protoc-gen-go-grpc.
set -eu
cd "$(dirname "$0")/.."
vt="--go_out=. --go_opt=module=cairn --go-vtproto_out=. --go-vtproto_opt=module=cairn"
protoc $vt --go-vtproto_opt=features=marshal+unmarshal+size+equal+clone proto/metapb/meta.proto
protoc $vt --go-vtproto_opt=features=marshal+unmarshal+size --go-grpc_out=. --go-grpc_opt=module=cairn proto/nodepb/*.proto

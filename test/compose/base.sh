#!/usr/bin/env bash
# Where no image registry is reached: makes the image that the Dockerfile builds in, under its tag, from this machine's
# Go, shell and downloaded modules, anew when these change. Where the image was pulled, or can be, nothing is made.
set -euo pipefail
cd "$(dirname "$0")/../.."

image=$(sed -n 's/^FROM \(golang:[^ ]*\) AS build$/\1/p' Dockerfile)
sum=$(sha256sum go.sum | cut -c 1-16)
if made=$(docker image inspect --format '{{with .Config}}{{index .Labels "cairn.go.sum"}}{{end}}' "$image" 2>/dev/null); then
  case $made in
    "" | "<no value>" | "$sum") exit 0 ;; # a registry's, or made from the same modules
  esac
elif timeout 60 docker pull -q "$image" >/dev/null 2>&1; then
  exit 0
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,tmp,root,usr/local,go/mod}
chmod 1777 "$root/tmp"
for tool in sh mkdir; do
  path=$(command -v "$tool")
  cp -L "$path" "$root/bin/$tool"
  ldd "$path" | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "$root$(dirname "$lib")"
    cp -L "$lib" "$root$lib"
  done
done
cp -a "$(go env GOROOT)" "$root/usr/local/go"
rm -rf "$root/usr/local/go/test"
go mod download
cp -a "$(go env GOMODCACHE)/cache/download" "$root/go/mod/proxy"
tar -C "$root" -c . | docker import \
  --change 'ENV PATH=/usr/local/go/bin:/bin HOME=/root GOTOOLCHAIN=local GOFLAGS=-modcacherw GOPROXY=file:///go/mod/proxy GOSUMDB=off GOMODCACHE=/go/pkg' \
  --change "LABEL cairn.go.sum=$sum" \
  - "$image" >/dev/null
echo "made $image from $(go version)"

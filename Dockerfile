# A static binary on an empty image, not run as root.
#   docker build -t cairn .
#   docker run -p 9000:9000 -v cairn:/data cairn
# compose.yaml starts six nodes from it.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/cairn ./cmd/cairn && mkdir /out/data /out/tokens /out/tmp

FROM scratch
COPY --from=build /out/cairn /cairn
# New volumes take over the owner of the folder they are mounted on.
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build --chown=65532:65532 /out/tokens /tokens
# A verification sorts what it found in temporary files.
COPY --from=build --chown=65532:65532 /out/tmp /tmp
USER 65532:65532
ENV CAIRN_DATA_DIR=/data CAIRN_LISTEN=:9000 CAIRN_ADMIN_LISTEN=:9001
VOLUME /data
# S3; metrics, health and the admin API; other nodes of a cluster.
EXPOSE 9000 9001 9002
HEALTHCHECK --interval=5s --timeout=6s --start-period=30s --retries=3 CMD ["/cairn", "health"]
# The shutdown waits for requests under way: give it longer than that (docker stop -t 30).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/cairn"]
CMD ["server"]

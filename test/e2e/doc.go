// Package e2e runs the cairn binary as its users do: real clients (aws-cli,
// boto3, the AWS SDK for Go v2, rclone, s3cmd), the README's tour word for word,
// wrong requests, kill -9 in the middle of writes, lost zones and rotten bytes.
//
// The tests stand behind the build tag e2e (make e2e); those that take many
// minutes also need the tag long (make e2e-long). A missing tool is a failure,
// never a skip: .ci/run installs them all.
//
// With CAIRN_E2E_ENDPOINT, CAIRN_E2E_ACCESS_KEY and CAIRN_E2E_SECRET_KEY the
// tests of clients and requests run against any S3 server at that address:
// handy to see what another implementation answers.
//
// CAIRN_E2E_LOG sets the servers' log level, CAIRN_E2E_RACE=1 builds them with
// the race detector, CAIRN_E2E_ROUNDS is how often TestKill kills, CAIRN_E2E_KEEP is
// a folder that keeps the whole logs of servers whose test failed.
package e2e

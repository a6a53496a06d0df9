// Package compose runs compose.yaml with real containers: it needs docker compose or
// the older docker-compose, and the ports that the file names. All of it is in its
// tests, behind the build tag compose: make compose.
package compose

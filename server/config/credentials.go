package config

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// RootName is the name of the account that the process itself makes.
const RootName = "root"

// CredentialsFile is the name of the file in the data folder that holds the root keys.
const CredentialsFile = "credentials.json"

// Credentials are the keys of one account.
type Credentials struct {
	AccessKey string
	SecretKey string
}

// credentialsFile is what CredentialsFile holds: JSON, versioned by Format.
type credentialsFile struct {
	Format    int    `json:"format"` // 1
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
}

// AccountID is the canonical user id of an account that was configured without
// one: 64 hex digits that follow from the name.
func AccountID(name string) string {
	sum := sha256.Sum256([]byte("cairn account " + name))
	return hex.EncodeToString(sum[:])
}

// Root is the root account's keys: those set by the operator, else those in the
// data folder, which are drawn at the first start (created is true then).
func (c *Config) Root() (keys Credentials, created bool, err error) {
	if c.RootAccessKey != "" {
		return Credentials{c.RootAccessKey, c.RootSecretKey}, false, nil
	}
	return EnsureCredentials(c.DataDir)
}

// EnsureCredentials reads the root keys kept in dir, or draws and keeps them if
// there are none (created is true then). The file is only ever readable by its
// owner; one that others can read is refused.
func EnsureCredentials(dir string) (keys Credentials, created bool, err error) {
	keys, err = ReadCredentials(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, false, err
	}
	keys = Credentials{}
	if keys.AccessKey, err = draw(20, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"); err != nil {
		return Credentials{}, false, err
	}
	if keys.SecretKey, err = draw(40, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"); err != nil {
		return Credentials{}, false, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Credentials{}, false, fmt.Errorf("make the data folder: %w", err)
	}
	err = keep(dir, keys)
	if errors.Is(err, fs.ErrExist) { // another process was first
		keys, err = ReadCredentials(dir)
		return keys, false, err
	}
	if err != nil {
		return Credentials{}, false, fmt.Errorf("keep the root keys in %s: %w", dir, err)
	}
	return keys, true, nil
}

// ReadCredentials reads the root keys kept in dir. The error is fs.ErrNotExist if there are none.
func ReadCredentials(dir string) (Credentials, error) {
	path := filepath.Join(dir, CredentialsFile)
	f, err := os.Open(path)
	if err != nil {
		return Credentials{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Credentials{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Credentials{}, fmt.Errorf("%s holds the root secret key and can be read by others (mode %04o): check who could read it, then run chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return Credentials{}, err
	}
	var in credentialsFile
	if err := json.Unmarshal(data, &in); err != nil || in.Format != 1 || in.AccessKey == "" || in.SecretKey == "" {
		return Credentials{}, fmt.Errorf("%s is not a credentials file of this release: restore it from a backup, or set CAIRN_ROOT_ACCESS_KEY and CAIRN_ROOT_SECRET_KEY", path)
	}
	return Credentials{in.AccessKey, in.SecretKey}, nil
}

// keep writes the file whole or not at all, and never over another: a link,
// unlike a rename, fails with fs.ErrExist then.
func keep(dir string, keys Credentials) error {
	data, err := json.MarshalIndent(credentialsFile{Format: 1, AccessKey: keys.AccessKey, SecretKey: keys.SecretKey}, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".credentials-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), filepath.Join(dir, CredentialsFile)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// draw makes n characters of the alphabet (at most 256), each equally likely.
func draw(n int, alphabet string) (string, error) {
	out := make([]byte, 0, n)
	var b [64]byte
	even := 256 - 256%len(alphabet) // bytes from here on would favour the first characters
	for len(out) < n {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("draw a key: %w", err)
		}
		for _, x := range b {
			if int(x) < even && len(out) < n {
				out = append(out, alphabet[int(x)%len(alphabet)])
			}
		}
	}
	return string(out), nil
}

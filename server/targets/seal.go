package targets

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// SealKey seals secrets.
type SealKey [32]byte

// sealFormat is the first byte of what is sealed; a nonce follows, and AES-256-GCM's text with its tag.
const sealFormat = 1

// Seal seals a secret of a target; Unseal is its inverse. The name of the target and of the setting are bound in.
func Seal(k SealKey, targetName, setting, secret string) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	out := make([]byte, 1+aead.NonceSize(), 1+aead.NonceSize()+len(secret)+aead.Overhead())
	out[0] = sealFormat
	nonce := out[1:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, errs.Wrap(errs.Other, "target.seal", targetName, err)
	}
	return aead.Seal(out, nonce, []byte(secret), bound(targetName, setting)), nil
}

// Unseal answers all secrets of a target. Corrupt: one was sealed by another key, for another target or setting, or is damaged.
func Unseal(k SealKey, t *metapb.SysTarget) (map[string]string, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	secrets := make(map[string]string, len(t.GetSecrets()))
	for _, s := range t.GetSecrets() {
		if len(s.Sealed) < 1+aead.NonceSize() || s.Sealed[0] != sealFormat {
			return nil, errs.Newf(errs.Corrupt, "target.unseal", t.Name, "the secret %q is of no known format: configure the target anew", s.Name)
		}
		nonce, sealed := s.Sealed[1:1+aead.NonceSize()], s.Sealed[1+aead.NonceSize():]
		plain, err := aead.Open(nil, nonce, sealed, bound(t.Name, s.Name))
		if err != nil {
			return nil, errs.Newf(errs.Corrupt, "target.unseal", t.Name, "the secret %q was not sealed for this target by this store's key: configure the target anew", s.Name)
		}
		secrets[s.Name] = string(plain)
	}
	return secrets, nil
}

func (k SealKey) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, errs.Wrap(errs.Other, "target.seal", "", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, errs.Wrap(errs.Other, "target.seal", "", err)
	}
	return aead, nil
}

// bound is what a sealed secret is for. Names of targets have no NUL, so no two pairs look alike.
func bound(targetName, setting string) []byte { return []byte(targetName + "\x00" + setting) }

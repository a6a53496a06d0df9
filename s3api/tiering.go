package s3api

import (
	"encoding/base64"
	"fmt"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage"
	"cairn/storage/errs"
)

// Limits of S3's tiering configurations.
const (
	tieringIDMax       = 64
	tieringPage        = 100 // configurations in an answer
	archiveDaysMin     = 90
	deepArchiveDaysMin = 180
	tierDaysMax        = 730
)

// S3's names of the archive tiers.
const (
	archiveAccess     = "ARCHIVE_ACCESS"
	deepArchiveAccess = "DEEP_ARCHIVE_ACCESS"
)

// archiveTier is S3's name of a tier that is an archive; "" of the others.
func archiveTier(t metapb.Tiering_Tier) string {
	switch t {
	case metapb.Tiering_ARCHIVE:
		return archiveAccess
	case metapb.Tiering_DEEP_ARCHIVE:
		return deepArchiveAccess
	}
	return ""
}

// setArchiveStatus tells in which archive tier the object is, until it is restored.
func (q *request) setArchiveStatus(o *objects.Object) {
	if tier := archiveTier(o.Tiering.GetTier()); tier != "" && (o.Restore == nil || q.h.cfg.Now().UnixMilli() < o.Restore.ReadyMs) {
		q.set("x-amz-archive-status", tier)
	}
}

func badTiering(name, value, format string, args ...any) error {
	return s3err.New(s3err.InvalidArgument, fmt.Sprintf(format, args...), s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
}

// tieringID is the id that the request names its configuration by.
func (q *request) tieringID() (string, error) {
	id, _ := q.param("id")
	if id == "" {
		return "", badTiering("id", "", "The configuration is named by the parameter id.")
	}
	return id, nil
}

func noTiering(id string) error {
	return s3err.New(s3err.NoSuchConfiguration, "", s3err.Field{Name: "ConfigurationId", Value: clip(id)})
}

func putBucketTiering(q *request) (*response, error) {
	id, err := q.tieringID()
	if err != nil {
		return nil, err
	}
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	sent, err := s3xml.ParseTiering(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	if sent.ID != id {
		return nil, badTiering("id", id, "The Id of the configuration is not the id of the request.")
	}
	cfg, err := tieringConfig(&sent)
	if err != nil {
		return nil, err
	}
	err = q.h.backend.PutBucketTiering(q.r.Context(), q.acct, q.bucket, cfg)
	if errs.Is(err, errs.EntityTooLarge) {
		err = s3err.New(s3err.TooManyConfigurations, "")
	}
	if err != nil {
		return nil, err
	}
	return q.ok(), nil
}

// tieringConfig checks a configuration and makes the one that is kept.
func tieringConfig(sent *s3xml.Tiering) (*metapb.TieringConfig, error) {
	if len(sent.ID) > tieringIDMax || strings.ContainsFunc(sent.ID, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) {
		return nil, badTiering("Id", sent.ID, "The id of a configuration has up to %d letters, digits, periods, hyphens and underscores.", tieringIDMax)
	}
	cfg := &metapb.TieringConfig{Id: sent.ID, Disabled: sent.Disabled}
	if in := sent.Filter; in != nil {
		cfg.Filter = &metapb.LifecycleFilter{InAnd: in.And}
		if err := filterTags(cfg.Filter, in.Tags); err != nil {
			return nil, err
		}
		if in.Prefix != nil {
			cfg.Filter.Prefix, cfg.Filter.HasPrefix = *in.Prefix, true
		}
		if len(cfg.Filter.Prefix) > storage.KeyBytesMax {
			return nil, badTiering("Prefix", cfg.Filter.Prefix, "The maximum size of a prefix is %d", storage.KeyBytesMax)
		}
	}
	for _, t := range sent.Tiers {
		days, least := &cfg.ArchiveDays, int64(archiveDaysMin)
		if t.Tier == deepArchiveAccess {
			days, least = &cfg.DeepArchiveDays, deepArchiveDaysMin
			cfg.DeepFirst = cfg.ArchiveDays == 0
		}
		switch {
		case *days != 0:
			return nil, badTiering("AccessTier", t.Tier, "An AccessTier stands in a configuration once.")
		case t.Days < least || t.Days > tierDaysMax:
			return nil, badTiering("Days", itoa(t.Days), "'Days' for %s must be from %d to %d.", t.Tier, least, tierDaysMax)
		}
		*days = uint32(t.Days)
	}
	return cfg, nil
}

func getBucketTiering(q *request) (*response, error) {
	id, err := q.tieringID()
	if err != nil {
		return nil, err
	}
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	for _, cfg := range b.Tiering {
		if cfg.Id == id {
			q.document("IntelligentTieringConfiguration")
			writeTiering(&q.out, cfg)
			q.out.Close("IntelligentTieringConfiguration")
			return q.ok(), nil
		}
	}
	return nil, noTiering(id)
}

func deleteBucketTiering(q *request) (*response, error) {
	id, err := q.tieringID()
	if err != nil {
		return nil, err
	}
	err = q.h.backend.DeleteBucketTiering(q.r.Context(), q.acct, q.bucket, id)
	if errs.Is(err, errs.NotFound) {
		err = noTiering(id)
	}
	return q.noContent(err)
}

// listBucketTiering lists the configurations by id. A continuation token holds the last id of the page before.
func listBucketTiering(q *request) (*response, error) {
	token, hasToken := q.param("continuation-token")
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || hasToken && token == "" {
		return nil, badTiering("continuation-token", token, "The continuation token provided is incorrect")
	}
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	const root = "ListBucketIntelligentTieringConfigurationsOutput"
	q.document(root)
	w := &q.out
	n, last, more := 0, "", false
	for _, cfg := range b.Tiering {
		if cfg.Id <= string(after) {
			continue
		}
		if more = n == tieringPage; more {
			break
		}
		w.Open("IntelligentTieringConfiguration")
		writeTiering(w, cfg)
		w.Close("IntelligentTieringConfiguration")
		n, last = n+1, cfg.Id
	}
	w.Bool("IsTruncated", more)
	if hasToken {
		w.Text("ContinuationToken", token)
	}
	if more {
		w.Raw("NextContinuationToken", base64.RawURLEncoding.EncodeToString([]byte(last)))
	}
	w.Close(root)
	return q.ok(), nil
}

// writeTiering writes a configuration as its client did.
func writeTiering(w *s3xml.Writer, cfg *metapb.TieringConfig) {
	w.Text("Id", cfg.Id)
	if cfg.Filter != nil {
		writeLifecycleFilter(w, cfg.Filter)
	}
	if cfg.Disabled {
		w.Raw("Status", "Disabled")
	} else {
		w.Raw("Status", "Enabled")
	}
	tier := func(name string, days uint32) {
		if days > 0 {
			w.Open("Tiering")
			w.Int("Days", int64(days))
			w.Raw("AccessTier", name)
			w.Close("Tiering")
		}
	}
	if cfg.DeepFirst {
		tier(deepArchiveAccess, cfg.DeepArchiveDays)
	}
	tier(archiveAccess, cfg.ArchiveDays)
	if !cfg.DeepFirst {
		tier(deepArchiveAccess, cfg.DeepArchiveDays)
	}
}

package s3xml

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// parsers are those of this file's documents, their answers as text.
func parsers() map[string]func([]byte) (string, error) {
	return map[string]func([]byte) (string, error){
		"VersioningConfiguration":   func(b []byte) (string, error) { v, err := ParseVersioning(b); return fmt.Sprint(v), err },
		"Tagging":                   func(b []byte) (string, error) { v, err := ParseTagging(b); return fmt.Sprint(v), err },
		"ObjectLockConfiguration":   func(b []byte) (string, error) { v, err := ParseLockConfiguration(b); return fmt.Sprint(v), err },
		"Retention":                 func(b []byte) (string, error) { v, err := ParseRetention(b); return fmt.Sprint(v), err },
		"LegalHold":                 func(b []byte) (string, error) { v, err := ParseLegalHold(b); return fmt.Sprint(v), err },
		"AccessControlPolicy":       func(b []byte) (string, error) { v, err := ParseACL(b); return fmt.Sprint(v), err },
		"OwnershipControls":         func(b []byte) (string, error) { return ParseOwnershipControls(b) },
		"LifecycleConfiguration":    func(b []byte) (string, error) { v, err := ParseLifecycle(b); return lifecycleText(v), err },
		"NotificationConfiguration": func(b []byte) (string, error) { v, err := ParseNotification(b); return notificationText(v), err },
		"RestoreRequest": func(b []byte) (string, error) {
			v, err := ParseRestore(b)
			return fmt.Sprint(deref(v.Days), " ", v.Tier), err
		},
		"PublicAccessBlockConfiguration": func(b []byte) (string, error) {
			v, says, err := ParsePublicAccessBlock(b)
			return fmt.Sprint(v, says), err
		},
	}
}

func TestParseSettings(t *testing.T) {
	grant := "<Grant><Grantee xmlns:xsi='x' xsi:type='CanonicalUser'><ID>me</ID><DisplayName>Me</DisplayName></Grantee><Permission>FULL_CONTROL</Permission></Grant>"
	for _, c := range []struct{ root, inner, want string }{
		{"VersioningConfiguration", "<Status>Enabled</Status>", "{Enabled}"},
		{"VersioningConfiguration", "<MfaDelete>Disabled</MfaDelete>\n<Status> Suspended </Status>", "{Suspended}"},
		{"VersioningConfiguration", "", "{}"},
		{"Tagging", "<TagSet/>", "[]"},
		{"Tagging", "<TagSet><Tag><Key>a </Key><Value/></Tag><Tag><Value>&lt;</Value><Key>a </Key></Tag></TagSet>", "[{a  } {a  <}]"},
		{"ObjectLockConfiguration", "<ObjectLockEnabled>Enabled</ObjectLockEnabled>", "{ 0 0 false}"},
		{"ObjectLockConfiguration", "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>-1</Days></DefaultRetention></Rule>", "{GOVERNANCE -1 0 false}"},
		{"ObjectLockConfiguration", "<Rule><DefaultRetention><Years>0</Years><Mode>COMPLIANCE</Mode></DefaultRetention></Rule><ObjectLockEnabled>Enabled</ObjectLockEnabled>", "{COMPLIANCE 0 0 true}"},
		{"Retention", "", "{ }"},
		{"Retention", "<Mode>COMPLIANCE</Mode><RetainUntilDate>soon</RetainUntilDate>", "{COMPLIANCE soon}"},
		{"PublicAccessBlockConfiguration", "", "{false false false false} false"},
		{"PublicAccessBlockConfiguration", "<BlockPublicAcls>false</BlockPublicAcls>", "{false false false false} true"},
		{"PublicAccessBlockConfiguration", "<RestrictPublicBuckets>TRUE</RestrictPublicBuckets><BlockPublicAcls>true</BlockPublicAcls>", "{true false false true} true"},
		{"PublicAccessBlockConfiguration", "<IgnorePublicAcls> true </IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy>", "{false true true false} true"},
		{"OwnershipControls", "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>", "BucketOwnerEnforced"},
		{"OwnershipControls", "<Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule>", "ObjectWriter"},
		{"LifecycleConfiguration", "", ""},
		{"LifecycleConfiguration", "<Rule><Filter/><Status>Enabled</Status><ID> x </ID></Rule>\n<Rule><Prefix> p</Prefix><Status> Disabled </Status></Rule>", "[ x  false - {- [] - - false} [] [] - - -][ true  p - [] [] - - -]"},
		{"LifecycleConfiguration", "<Rule><Status>Enabled</Status><Filter><And><ObjectSizeLessThan> 5 </ObjectSizeLessThan><Tag><Value/><Key>k</Key></Tag><Tag><Key>k</Key><Value>v</Value></Tag><Prefix/></And></Filter></Rule>",
			"[ false - { [{k } {k v}] - 5 true} [] [] - - -]"},
		{"LifecycleConfiguration", "<Rule><Filter><Tag><Key>k</Key><Value/></Tag></Filter><Status>Enabled</Status><Transition><StorageClass>X</StorageClass><Days>-3</Days></Transition><Transition><Date>2030-01-01T01:00:00+01:00</Date><StorageClass>Y</StorageClass></Transition>" +
			"<NoncurrentVersionTransition><NewerNoncurrentVersions>0</NewerNoncurrentVersions><NoncurrentDays>1</NoncurrentDays><StorageClass>Z</StorageClass></NoncurrentVersionTransition></Rule>",
			"[ false - {- [{k }] - - false} [{-3 - X -} {- 2030-01-01 00:00:00 +0000 UTC Y -}] [{1 - Z 0}] - - -]"},
		{"LifecycleConfiguration", "<Rule><Prefix/><Status>Enabled</Status><Expiration><ExpiredObjectDeleteMarker>false</ExpiredObjectDeleteMarker></Expiration><NoncurrentVersionExpiration><NoncurrentDays>-1</NoncurrentDays></NoncurrentVersionExpiration>" +
			"<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>", "[ false  - [] [] {- - false} {-1 -} 7]"},
		{"RestoreRequest", "", "- "},
		{"RestoreRequest", "<Days> 3 </Days><GlacierJobParameters><Tier> Bulk</Tier></GlacierJobParameters>", "3 Bulk"},
		{"RestoreRequest", "<Tier>Expedited</Tier><Description>why &amp; what</Description><Days>-1</Days>", "-1 Expedited"},
		{"RestoreRequest", "<Tier>Standard</Tier><GlacierJobParameters><Tier>Standard</Tier></GlacierJobParameters>", "- Standard"},
		{"LegalHold", "<Status>ON</Status>", "true"},
		{"LegalHold", "<Status>OFF</Status>", "false"},
		{"AccessControlPolicy", "<Owner><ID>me</ID></Owner><AccessControlList>" + grant + "</AccessControlList>", "{me [{me   FULL_CONTROL}]}"},
		{"AccessControlPolicy", "<AccessControlList><Grant><Grantee><URI>all</URI></Grantee><Permission>READ</Permission></Grant></AccessControlList>", "{ [{ all  READ}]}"},
	} {
		if got, err := parsers()[c.root]([]byte("<" + c.root + ">" + c.inner + "</" + c.root + ">")); err != nil || got != c.want {
			t.Errorf("%s %s: %s, %v, want %s", c.root, c.inner, got, err, c.want)
		}
	}
	for root, bad := range map[string][]string{
		"VersioningConfiguration": {"<Status>enabled</Status>", "<Status/>", "<Status>Enabled</Status><Status>Suspended</Status>", "<MfaDelete>x</MfaDelete>", "<Other>Enabled</Other>", "Enabled"},
		"Tagging": {"", "<Tag/>", "<TagSet><Tag/></TagSet>", "<TagSet><Tag><Key>a</Key></Tag></TagSet>", "<TagSet><Tag><Value>a</Value></Tag></TagSet>", "<TagSet/><TagSet/>", "<TagSet><Other/></TagSet>",
			"<TagSet><Tag><Key>a</Key><Key>b</Key><Value/></Tag></TagSet>", "<TagSet><Tag><Key>a</Key><Value/><More/></Tag></TagSet>", "<TagSet>" + strings.Repeat("<Tag><Key>a</Key><Value/></Tag>", 1001) + "</TagSet>"},
		"ObjectLockConfiguration": {"", "<ObjectLockEnabled>Disabled</ObjectLockEnabled>", "<Rule/>", "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule/>", "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><Other/></Rule>",
			"<ObjectLockEnabled>Enabled</ObjectLockEnabled><Other/>", "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>"},
		"Retention": {"<Mode>GOVERNANCE</Mode>", "<RetainUntilDate>x</RetainUntilDate>", "<Mode>governance</Mode><RetainUntilDate>x</RetainUntilDate>", "<Mode/><RetainUntilDate/>", "<Mode>GOVERNANCE</Mode><RetainUntilDate/>"},
		"LifecycleConfiguration": {"<Other/>", "<Rule/>", "<Rule><Filter/></Rule>", "<Rule><Status>Enabled</Status></Rule>", "<Rule><Filter/><Prefix/><Status>Enabled</Status></Rule>", "<Rule><Filter/><Status>on</Status></Rule>",
			"<Rule><Filter><Prefix/><And/></Filter><Status>Enabled</Status></Rule>", "<Rule><Filter><And><Prefix/></And></Filter><Status>Enabled</Status></Rule>", "<Rule><Filter/><Status>Enabled</Status><Expiration/></Rule>",
			"<Rule><Filter/><Status>Enabled</Status><Transition><Days>1</Days></Transition></Rule>", "<Rule><Filter/><Status>Enabled</Status>" + strings.Repeat("<Transition><Days>1</Days><StorageClass>X</StorageClass></Transition>", 21) + "</Rule>"},
		"RestoreRequest": {"<Days/>", "<Days>x</Days>", "<Days>1.5</Days>", "<Days>2147483648</Days>", "<Days>1</Days><Days>1</Days>", "<Tier>bulk</Tier>", "<Tier/>", "<GlacierJobParameters/>", "<GlacierJobParameters><Other/></GlacierJobParameters>",
			"<GlacierJobParameters><Tier>Bulk</Tier><Tier>Bulk</Tier></GlacierJobParameters>", "<Tier>Bulk</Tier><GlacierJobParameters><Tier>Standard</Tier></GlacierJobParameters>", "<Other/>", "<Description><b/></Description>"},
		"LegalHold": {"", "<Status>on</Status>", "<Status/>", "<Other>ON</Other>", "<Status>ON</Status><Status>OFF</Status>"},
		"AccessControlPolicy": {"<Other/>", "<AccessControlList><Other/></AccessControlList>", "<AccessControlList><Grant/></AccessControlList>", "<AccessControlList><Grant><Permission>ALL</Permission></Grant></AccessControlList>",
			"<AccessControlList><Grant><Other/></Grant></AccessControlList>", "<Owner><Name>x</Name></Owner>", "<AccessControlList>" + strings.Repeat(grant, 1001) + "</AccessControlList>"},
	} {
		for _, inner := range bad {
			if got, err := parsers()[root]([]byte("<" + root + ">" + inner + "</" + root + ">")); err == nil {
				t.Errorf("%s %.80s: accepted as %.80s", root, inner, got)
			} else if se := (*SyntaxError)(nil); !errors.As(err, &se) {
				t.Errorf("%s %.80s: %T", root, inner, err)
			}
		}
	}
	retention := func(inner string) error {
		_, err := ParseLockConfiguration([]byte("<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>" + inner + "</DefaultRetention></Rule></ObjectLockConfiguration>"))
		return err
	}
	for _, inner := range []string{"", "<Mode>GOVERNANCE</Mode>", "<Days>1</Days>", "<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>", "<Mode>abc</Mode><Days>1</Days>", "<Mode>GOVERNANCE</Mode><Days>1.5</Days>", "<Mode>GOVERNANCE</Mode><Days/>",
		"<Mode>GOVERNANCE</Mode><Days>1</Days><Days>2</Days>", "<Mode>GOVERNANCE</Mode><Weeks>1</Weeks>"} {
		if retention(inner) == nil {
			t.Errorf("%s accepted", inner)
		}
	}
	var unsupported *Unsupported
	if _, err := ParseVersioning([]byte("<VersioningConfiguration><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>")); !errors.As(err, &unsupported) || unsupported.Element != "MfaDelete" {
		t.Error(err)
	}
	for _, name := range []string{"Type", "SelectParameters", "OutputLocation"} {
		if _, err := ParseRestore([]byte("<RestoreRequest><" + name + "><Any/></" + name + "></RestoreRequest>")); !errors.As(err, &unsupported) || unsupported.Element != name {
			t.Error(name, err)
		}
	}
	for root, parse := range parsers() {
		for _, doc := range []string{"", "<" + root + ">", "<Other/>", "<" + root + "/><" + root + "/>"} {
			if _, err := parse([]byte(doc)); err == nil {
				t.Errorf("%s: %s accepted", root, doc)
			}
		}
	}
}

// lifecycleText shows rules with what is behind their pointers; "-" is absent.
func lifecycleText(rules []LifecycleRule) (out string) {
	transitions := func(ts []LifecycleTransition) (all []string) {
		for _, t := range ts {
			all = append(all, fmt.Sprintf("{%v %v %s %v}", deref(t.Days), deref(t.Date), t.StorageClass, deref(t.NewerNoncurrent)))
		}
		return all
	}
	for _, r := range rules {
		filter, expiration, noncurrent := "-", "-", "-"
		if f := r.Filter; f != nil {
			filter = fmt.Sprintf("{%v %v %v %v %v}", deref(f.Prefix), f.Tags, deref(f.SizeGreater), deref(f.SizeLess), f.And)
		}
		if e := r.Expiration; e != nil {
			expiration = fmt.Sprintf("{%v %v %v}", deref(e.Days), deref(e.Date), deref(e.DeleteMarker))
		}
		if e := r.NoncurrentExpiration; e != nil {
			noncurrent = fmt.Sprintf("{%d %v}", e.Days, deref(e.NewerNoncurrent))
		}
		out += fmt.Sprintf("[%s %v %v %s %v %v %s %s %v]", r.ID, r.Disabled, deref(r.Prefix), filter, transitions(r.Transitions), transitions(r.NoncurrentTransitions), expiration, noncurrent, deref(r.AbortDays))
	}
	return out
}

func deref[T any](p *T) any {
	if p == nil {
		return "-"
	}
	return *p
}

func TestLifecycleRulesMax(t *testing.T) {
	doc := func(n int) []byte {
		return []byte("<LifecycleConfiguration>" + strings.Repeat("<Rule><Filter/><Status>Enabled</Status></Rule>", n) + "</LifecycleConfiguration>")
	}
	if rules, err := ParseLifecycle(doc(LifecycleRulesMax)); err != nil || len(rules) != LifecycleRulesMax {
		t.Error(len(rules), err)
	}
	var many *TooMany
	if _, err := ParseLifecycle(doc(LifecycleRulesMax + 1)); !errors.As(err, &many) || many.Max != LifecycleRulesMax || many.Element != "Rule" {
		t.Error(err)
	}
}

package s3api

import (
	"strings"
	"testing"
)

// TestLifecycleRulesOfFiles: JSON says what XML says, and is refused for the same reasons.
func TestLifecycleRulesOfFiles(t *testing.T) {
	same := []struct{ json, xml string }{
		{`{"Rules":[{"ID":"a<&","Status":"Enabled","Filter":{"Prefix":"p/"},"Expiration":{"Days":3}}]}`,
			`<LifecycleConfiguration><Rule><ID>a&lt;&amp;</ID><Status>Enabled</Status><Filter><Prefix>p/</Prefix></Filter><Expiration><Days>3</Days></Expiration></Rule></LifecycleConfiguration>`},
		{` {"Rules": [{"ID":"x","Status":"Disabled","Filter":{"And":{"Prefix":"q","Tags":[{"Key":"k","Value":"v"},{"Key":"l","Value":""}],"ObjectSizeGreaterThan":5}},
			"Transitions":[{"Days":30,"StorageClass":"STANDARD_IA"},{"Days":90,"StorageClass":"GLACIER"}],
			"NoncurrentVersionTransitions":[{"NoncurrentDays":40,"StorageClass":"GLACIER_IR"}],
			"NoncurrentVersionExpiration":{"NoncurrentDays":100,"NewerNoncurrentVersions":2}},
			{"ID":"y","Status":"Enabled","Filter":{},"Expiration":{"ExpiredObjectDeleteMarker":true},"AbortIncompleteMultipartUpload":{"DaysAfterInitiation":7}},
			{"ID":"z","Status":"Enabled","Filter":{"Prefix":""},"Expiration":{"Date":"2030-01-01T00:00:00.000Z"}}]} `,
			`<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><ID>x</ID><Status>Disabled</Status><Filter><And><Prefix>q</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><Tag><Key>l</Key><Value></Value></Tag><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></And></Filter>
			<Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition><Transition><Days>90</Days><StorageClass>GLACIER</StorageClass></Transition>
			<NoncurrentVersionTransition><NoncurrentDays>40</NoncurrentDays><StorageClass>GLACIER_IR</StorageClass></NoncurrentVersionTransition>
			<NoncurrentVersionExpiration><NoncurrentDays>100</NoncurrentDays><NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration></Rule>
			<Rule><ID>y</ID><Status>Enabled</Status><Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
			<Rule><ID>z</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><Expiration><Date>2030-01-01T00:00:00Z</Date></Expiration></Rule></LifecycleConfiguration>`},
	}
	for _, c := range same {
		a, err := LifecycleRules([]byte(c.json), "varies_by_storage_class")
		if err != nil {
			t.Fatal(err)
		}
		b, err := LifecycleRules([]byte(c.xml), "varies_by_storage_class")
		if err != nil {
			t.Fatal(err)
		}
		if !a.EqualVT(b) || !a.VariesByStorageClass {
			t.Errorf("%v\nis not\n%v", a, b)
		}
	}
	for _, c := range []struct{ doc, want string }{
		{``, "MalformedXML"}, {`{`, "MalformedXML"}, {`{}`, "At least one lifecycle rule"}, {`{"Rules":[]}`, "At least one lifecycle rule"}, {`{"Rules":{}}`, "cannot have"},
		{`{"Rules":[[{}]]}`, "cannot have"}, {`{"Rules":[{"ID":["a"]}]}`, "cannot have"}, {`{"Rules":[{"ID":null}]}`, "cannot have"}, {`{"Rules":["a"]}`, "cannot have"},
		{`{"Rules":[{"Statuss":"Enabled"}]}`, "Statuss"}, {`{"Rules":[{"a b":1}]}`, "unknown member"}, {`{"Rules":[{"</Rule>":1}]}`, "unknown member"}, {`{"":1}`, "without a name"},
		{`{"Rules":[]}{"Rules":[]}`, "follows"}, {strings.Repeat(`{"a":`, 50), "too deep"},
		{`{"Rules":[{"Status":"Enabled","Filter":{},"Expiration":{"Days":0}}]}`, "must be a positive integer"},
		{`{"Rules":[{"Status":"Enabled","Filter":{},"Expiration":{"Days":1.5}}]}`, "MalformedXML"},
		{`{"Rules":[{"Status":"Enabled","Filter":{},"Transitions":[{"Days":1,"StorageClass":"STANDARD_IA"}]}]}`, "greater than or equal to 30"},
		{`<LifecycleConfiguration/>`, "At least one lifecycle rule"}, {`<Other/>`, "MalformedXML"},
	} {
		if _, err := LifecycleRules([]byte(c.doc), ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80s: %v, want %q", c.doc, err, c.want)
		}
	}
	if _, err := LifecycleRules([]byte(same[0].xml), "small"); err == nil || !strings.Contains(err.Error(), "TransitionDefaultMinimumObjectSize") {
		t.Error(err)
	}
}

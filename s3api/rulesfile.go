package s3api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"cairn/proto/metapb"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// LifecycleRules reads lifecycle rules that nobody puts, with the checks and errors of PutBucketLifecycleConfiguration: S3's XML, or the
// same as JSON as SDKs and aws-cli write it. minimum is what the header x-amz-transition-default-minimum-object-size would say, or empty.
func LifecycleRules(doc []byte, minimum string) (*metapb.LifecycleConfig, error) {
	cfg := &metapb.LifecycleConfig{}
	var err error
	if cfg.VariesByStorageClass, err = minimumSize(minimum); err != nil {
		return nil, err
	}
	if doc = bytes.TrimSpace(doc); len(doc) > 0 && doc[0] == '{' {
		if doc, err = rulesFromJSON(doc); err != nil {
			return nil, &s3err.Error{Code: s3err.MalformedXML, Message: "The JSON is not a lifecycle configuration: " + err.Error(), Err: err}
		}
	}
	cfg.Rules, err = lifecycleRules(doc)
	return cfg, err
}

// What JSON calls lists are elements that are repeated, called by the singular.
func elementOf(name string) string {
	switch name {
	case "Rules", "Transitions", "NoncurrentVersionTransitions", "Tags":
		return name[:len(name)-1]
	}
	return name
}

// rulesDepthMax is how deep a lifecycle configuration goes, and somewhat more.
const rulesDepthMax = 10

// rulesFromJSON writes JSON as the XML that it stands for; whether that is a lifecycle configuration is not looked at.
func rulesFromJSON(doc []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var w s3xml.Writer
	w.Open("LifecycleConfiguration")
	t, err := d.Token()
	if err == nil && t != json.Delim('{') {
		err = errors.New("it is not an object")
	}
	if err == nil {
		err = jsonMembers(d, &w, 1)
	}
	if err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return nil, err
	}
	w.Close("LifecycleConfiguration")
	return w.B, nil
}

// jsonMembers writes the members of the object that the decoder is in, up to its end.
func jsonMembers(d *json.Decoder, w *s3xml.Writer, depth int) error {
	if depth > rulesDepthMax {
		return errors.New("it is nested too deep")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // the key of a member is nothing else
		for i := range len(name) {
			if c := name[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') {
				return fmt.Errorf("unknown member %q", clip(name))
			}
		}
		if name == "" {
			return errors.New("a member without a name")
		}
		if err := jsonValue(d, w, name, depth, true); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// jsonValue writes the value of a member, or of an element of a list that is one.
func jsonValue(d *json.Decoder, w *s3xml.Writer, name string, depth int, list bool) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	element := elementOf(name)
	switch v := t.(type) {
	case json.Delim:
		switch {
		case v == '[' && list && element != name:
			for d.More() {
				if err := jsonValue(d, w, name, depth, false); err != nil {
					return err
				}
			}
			_, err := d.Token()
			return err
		case v == '{' && (!list || element == name):
			w.Open(element)
			err := jsonMembers(d, w, depth+1)
			w.Close(element)
			return err
		}
	case string:
		if element == name {
			w.Text(name, v)
			return nil
		}
	case json.Number:
		if element == name {
			w.Text(name, v.String())
			return nil
		}
	case bool:
		if element == name {
			w.Bool(name, v)
			return nil
		}
	}
	return fmt.Errorf("%s has a value that it cannot have", name)
}

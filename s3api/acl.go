package s3api

import (
	"bytes"
	"slices"

	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// Every bucket and object is its owner's alone, which is what ACLs say that
// nobody changed. Only that can be put.

// acl answers that the owner may do everything and nobody else anything.
func (q *request) acl(owner string) *response {
	q.document("AccessControlPolicy")
	w := &q.out
	q.owner("Owner", owner)
	w.Open("AccessControlList")
	w.Open("Grant")
	w.Open(`Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"`)
	w.Text("ID", owner)
	if owner == q.acct.ID {
		w.Text("DisplayName", q.acct.DisplayName)
	}
	w.Close("Grantee")
	w.Raw("Permission", "FULL_CONTROL")
	w.Close("Grant")
	w.Close("AccessControlList")
	w.Close("AccessControlPolicy")
	return q.ok()
}

// checkACL refuses an ACL to be put that is another than acl answers. Canned ones were checked with the other headers.
func (q *request) checkACL(owner string) error {
	doc, err := q.readXML()
	if err != nil {
		return err
	}
	canned := q.hdr("X-Amz-Acl") != ""
	switch empty := len(bytes.TrimSpace(doc)) == 0; {
	case canned && empty:
		return nil
	case canned:
		return s3err.New(s3err.UnexpectedContent, "")
	case empty:
		return s3err.New(s3err.MissingSecurityHeader, "", s3err.Field{Name: "MissingHeaderName", Value: "x-amz-acl"})
	}
	a, err := s3xml.ParseACL(doc)
	if err != nil {
		return &s3err.Error{Code: s3err.MalformedACLError, Fields: []s3err.Field{{Name: "Detail", Value: err.Error()}}, Err: err}
	}
	if a.Owner != "" && a.Owner != owner {
		return s3err.New(s3err.AccessDenied, "")
	}
	for _, g := range a.Grants {
		if err := q.checkGrantee(g, owner); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(a.Grants, func(g s3xml.Grant) bool { return g.URI == allUsers || g.URI == authenticatedUsers }) {
		return q.refusePublic(notImplementedACL())
	}
	if len(a.Grants) != 1 || a.Grants[0] != (s3xml.Grant{ID: owner, Permission: "FULL_CONTROL"}) {
		return notImplementedACL()
	}
	return nil
}

func notImplementedACL() error {
	return s3err.New(s3err.NotImplemented, "Access control lists other than the owner's FULL_CONTROL are not implemented.")
}

// Groups that can be granted something, as URIs.
const (
	allUsers           = "http://acs.amazonaws.com/groups/global/AllUsers"
	authenticatedUsers = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
	logDelivery        = "http://acs.amazonaws.com/groups/s3/LogDelivery"
)

// checkGrantee refuses a grant to nobody that there is.
func (q *request) checkGrantee(g s3xml.Grant, owner string) error {
	bad := func(message, name, value string) error {
		return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
	}
	switch {
	case g.Email != "": // accounts have none here
		return s3err.New(s3err.UnresolvableGrantByEmailAddress, "")
	case g.URI == allUsers, g.URI == authenticatedUsers, g.URI == logDelivery:
		return nil
	case g.URI != "":
		return bad("Invalid group uri", "uri", g.URI)
	case g.ID == owner, g.ID == q.acct.ID, q.h.cfg.AccountExists != nil && q.h.cfg.AccountExists(g.ID):
		return nil
	}
	return bad("Invalid id", "CanonicalUser/ID", g.ID)
}

func getBucketAcl(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	return q.acl(b.Owner), nil
}

func putBucketAcl(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err == nil {
		err = q.checkACL(b.Owner)
	}
	if err != nil {
		return nil, err
	}
	return q.ok(), nil
}

func getObjectAcl(q *request) (*response, error) {
	o, err := q.target()
	if err != nil {
		return nil, err
	}
	return q.acl(o.Owner), nil
}

func putObjectAcl(q *request) (*response, error) {
	o, err := q.target()
	if err == nil {
		err = q.checkACL(o.Owner)
	}
	if err != nil {
		return nil, err
	}
	return q.ok(), nil
}

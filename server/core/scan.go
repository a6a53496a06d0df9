package core

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/rpc"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/shardrpc"
	"cairn/storage/verify"
)

// scanPage is how many frames go to another node at once.
const scanPage = 256

// Scan tells another node's checker what is on a drive of this one.
func (s lookServer) Scan(req *nodepb.ScanRequest, stream grpc.ServerStreamingServer[nodepb.ScanPage]) error {
	for _, d := range s.c.Controller.Drives() {
		if id := d.ID(); string(id[:]) == string(req.Drive) {
			return sendScan(stream, scanner(d))
		}
	}
	return errs.New(errs.DriveFailed, "scan", "", "the drive is not open on this node")
}

func sendScan(stream grpc.ServerStreamingServer[nodepb.ScanPage], scan func(context.Context, func(verify.Frame) error) error) error {
	page := &nodepb.ScanPage{}
	err := scan(stream.Context(), func(f verify.Frame) error {
		row := &nodepb.ScanFrame{Header: shardrpc.HeaderToWire(&f.Header), Bytes: uint32(f.Bytes), Where: f.Where}
		if f.Err != nil {
			row.Error = &nodepb.Error{Kind: uint32(errs.KindOf(f.Err)), Detail: f.Err.Error()}
		}
		if page.Frames = append(page.Frames, row); len(page.Frames) < scanPage {
			return nil
		}
		full := page
		page = &nodepb.ScanPage{}
		return stream.Send(full)
	})
	if err == nil && len(page.Frames) > 0 {
		err = stream.Send(page)
	}
	return err
}

// scanElsewhere reads the frames of another node's drive.
func (n *node) scanElsewhere(at cluster.NodeID, id storage.DriveID) func(context.Context, func(verify.Frame) error) error {
	return func(ctx context.Context, fn func(verify.Frame) error) error {
		ctx, cancel := context.WithCancel(ctx) // fn may end it
		defer cancel()
		conn, err := n.client.Conn(at, rpc.Bulk)
		if err != nil {
			return err
		}
		stream, err := nodepb.NewStatusClient(conn).Scan(ctx, &nodepb.ScanRequest{Drive: id[:]})
		if err != nil {
			return err
		}
		for {
			page, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, row := range page.Frames {
				f := verify.Frame{Bytes: int(row.Bytes), Where: row.Where}
				if f.Header, err = shardrpc.HeaderFromWire(row.Header); err != nil {
					return err
				}
				if e := row.Error; e != nil {
					f.Err = errs.New(errs.Kind(e.Kind), "", "", e.Detail)
				}
				if err := fn(f); err != nil {
					return err
				}
			}
		}
	}
}

// drivesElsewhere are the drives of the other nodes as the checker wants them, those that can be reached.
func (n *node) drivesElsewhere() (out []verify.Drive) {
	for _, d := range n.c.Controller.Topology().SortedDrives() {
		if d.Node == n.self {
			continue
		}
		if store := n.store(d.ID); store != nil && d.State == cluster.DriveActive {
			out = append(out, verify.Drive{ID: d.ID, Path: string(d.Node) + ":" + d.Path, Store: store, Scan: n.scanElsewhere(d.Node, d.ID)})
		}
	}
	return out
}

package target

// Window answers how many messages from the first on may be under way at once, limit at most: up to where a key comes a second
// time. Of two events of a key that are both under way the broker may take the second and not the first, and then the
// first comes after it; events of different keys do not mind. It is at least 1 if there is a message.
func Window(batch []Message, limit int) int {
	type object struct{ bucket, key string }
	n := min(len(batch), max(limit, 1))
	seen := make(map[object]bool, n)
	for i, m := range batch[:n] {
		o := object{m.Bucket, m.Key}
		if seen[o] {
			return i
		}
		seen[o] = true
	}
	return n
}

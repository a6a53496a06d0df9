package cluster

// Growth is what a command does to the space that its group's rows take on drives.
type Growth int

// Growths.
const (
	GrowthNone  Growth = iota // it removes, or is needed so that others can: always taken
	GrowthSmall               // a small row or a few: refused while a drive has less than half its reserve
	GrowthLarge               // refused while a drive is below its reserve
)

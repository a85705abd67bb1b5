package env

// IDRange is a slot's block of host user and group ids. Inside, 0 to Size-1
// appear as Base to Base+Size-1 outside.
type IDRange struct {
	Base uint32
	Size uint32
}

// IDRangeSize is the number of ids of every slot.
const IDRangeSize = 65536

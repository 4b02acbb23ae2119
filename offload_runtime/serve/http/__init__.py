"""HTTP itself: bodies read with distrust, who may ask, and how answers leave."""

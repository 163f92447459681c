"""English prose that passes every quality rule."""

PROSE = """The river that runs behind the old mill was never still. In spring it carried branches and ice down to
the lake, and the children of the village stood on the bridge to count them.

By late summer you could walk across it with dry feet, provided you knew which of the stones would hold. My aunt knew.
She had crossed it every morning for forty years to feed her goats on the far side, and nobody ever saw her slip.
When she grew too old for this she sold the goats, bought a bench, and had it carried to the water's edge."""

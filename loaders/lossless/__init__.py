"""16-bit floats without loss in fewer bits: a low-bit code of each weight, and the rest that the code leaves open."""

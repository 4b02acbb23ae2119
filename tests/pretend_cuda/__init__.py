"""A CUDA that only pretends, for tests of the GPU's path where there is none."""

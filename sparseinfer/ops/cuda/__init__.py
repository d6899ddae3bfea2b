"""The operators on CUDA: the same rooms as those of the CPU, for kernels that read other packings."""

"""The operators on the CPU: kernels, packings, layouts, and the native calls."""

"""The benchmarks, one file each; each defines BENCHMARK."""

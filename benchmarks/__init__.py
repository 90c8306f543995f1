"""What Standfast takes, measured: `make bench`. The figures are in docs/benchmarks.md."""
